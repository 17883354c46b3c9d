"""The study's units: one rollout of one training each, its truth, and what every signal makes of it."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from experiments.model import response_logps
from experiments.protocol import FIPO, SETTINGS
from experiments.task import ALPHABET, CHAINS, END
from experiments.truth import smollm2
from experiments.truth.measures import chance, cosine, gradient_measures, is_decided, of_response, rank
from experiments.truth.replay import Rollout, Sight, likeness, replay, rollouts
from experiments.truth.signals import LIKENESS, RAW, SIGNALS, View
from experiments.truth.values import Response, Values, measure, measure_with
from fipo import FIPOParams, fipo_loss
from fipo.errors import DataError
from fipo.run_folder import whole_file
from fipo.traces import Trace, write_traces
from fipo.traces.schema import token_columns

SMOLLM2 = "smollm2"
RESULTS = Path(__file__).parent / "results"
UPDATES = (1, 2, 4, 6)
SHOWN_UPDATE = 4  # whose traces are kept, and whose gradients are measured
FACTORS = (1 / 3, 1, 3)  # of the tuned learning rate
EIGHTHS = 8


@dataclass(frozen=True)
class Unit:
    """One rollout of one training."""

    chain: str
    seed: int
    rollout: int
    measured: int  # responses

    @property
    def name(self) -> str:
        return f"{self.chain}_s{self.seed}_r{self.rollout:02}"

    def file(self, kind: str) -> Path:
        return RESULTS / f"{self.name}_{kind}"

    @property
    def done(self) -> bool:
        return self.file("facts.json").exists()  # written last

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.file("facts.json").read_text())

    @property
    def left_out(self) -> str:
        """Why a unit that is done has nothing measured; else empty."""
        return self.facts.get("left out", "")


UNITS = [
    *(Unit("short", seed, rollout, 64) for seed in (0, 1) for rollout in (1, 10, 19)),
    *(Unit("long", 0, rollout, 24) for rollout in (1, 6, 11)),
    *(Unit(SMOLLM2, 0, rollout, 56) for rollout in smollm2.ROLLOUTS),
]


def run(unit: Unit) -> tuple[Unit, float]:
    """Measures one unit and writes its files, or why it is left out; returns it with the seconds that it took."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    try:
        facts = _measure_language_model(unit) if unit.chain == SMOLLM2 else _measure(unit)
    except DataError as error:
        facts = {"left out": str(error)}
    facts["seconds"] = round(time.perf_counter() - started)
    with whole_file(unit.file("facts.json")) as file:
        file.write_text(json.dumps(facts, indent=1) + "\n")
    return unit, facts["seconds"]


def _measure(unit: Unit) -> dict[str, Any]:
    """Writes a unit's traces and measures, and returns its facts.

    Raises:
        DataError: Nothing can be measured.
    """
    setting = SETTINGS[unit.chain]
    ((_, rollout),) = rollouts(setting, unit.seed, [unit.rollout], unit.measured)
    _require_some(len(rollout.measured))
    responses = list(_responses(rollout))
    generator = torch.Generator().manual_seed(unit.seed)
    values = measure(rollout.model, responses, CHAINS[unit.chain].max_tokens, generator)
    like = likeness(rollout)
    rows, facts = [], {"responses": len(responses), **_facts(responses, values)}
    for factor in FACTORS:
        for sight in replay(rollout, factor * setting.learning_rate):
            if sight.update not in UPDATES:
                continue
            view = _view(rollout, sight, values, like)
            first = int(rollout.measured[0])
            rows += list(
                _measured(
                    view,
                    [values[row - first] for row in sight.rows.tolist()],
                    rollout.rewards[sight.rows].tolist(),
                    rollout.groups[sight.rows].tolist(),
                    [{"factor": float(f"{factor:.3g}"), "update": sight.update}] * len(sight.rows),
                )
            )
            if factor == 1 and sight.update == SHOWN_UPDATE:
                facts["gradients"] = _gradients(rollout, sight, view)
                traces = list(_traces(unit, rollout, sight, view))
                write_traces(traces, unit.file("traces.parquet"), FIPOParams(), updates_per_rollout=FIPO.updates)
    _write_measures(unit, rows)
    return facts


def _measure_language_model(unit: Unit) -> dict[str, Any]:
    """The same of the demo's own traces, which hold one update of each response.

    Raises:
        DataError: Nothing can be measured.
    """
    traces = smollm2.traced(unit.rollout)
    _require_some(len(traces))
    responses = [smollm2.response_of(trace) for trace in traces]
    policy = smollm2.Policy(unit.rollout, responses)
    facts: dict[str, Any] = {"responses": len(responses), "difference of log-probs": policy.difference()}
    values = measure_with(policy.right_from, responses)
    view = smollm2.view_of(traces, values)
    about = [{"factor": 1.0, "update": trace.update} for trace in traces]
    rewards, groups = [response.reward for response in responses], [trace.group for trace in traces]
    _write_measures(unit, list(_measured(view, values, rewards, groups, about)))
    write_traces(
        smollm2.with_truth(traces, values),
        unit.file("traces.parquet"),
        FIPOParams(),
        updates_per_rollout=smollm2.UPDATES,
    )
    return facts | _facts(responses, values)


def _require_some(responses: int) -> None:
    if not responses:
        raise DataError("no group of the rollout has both rewards, so nothing was decided; measure another rollout.")


def _write_measures(unit: Unit, rows: list[dict[str, Any]]) -> None:
    with whole_file(unit.file("measures.parquet")) as file:
        pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")


def _responses(rollout: Rollout) -> Iterator[Response]:
    for row in rollout.measured.tolist():
        kept = int(rollout.samples.mask[row].sum())
        ids, logps = rollout.samples.ids[row, :kept].tolist(), rollout.samples.logps[row, :kept]
        yield Response(rollout.problems[row], ids, logps, float(rollout.rewards[row]))


def _facts(responses: list[Response], values: list[Values]) -> dict[str, Any]:
    sampled = [found.samples > 0 for found in values]
    return {
        "right": sum(response.reward for response in responses),
        "tokens": sum(len(response.ids) for response in responses),
        "prefixes sampled": sum(int(where.sum()) for where in sampled),
        "samples": sum(int(found.samples.sum()) for found in values),
        "largest standard error": max(float(found.error.max()) for found in values),
        "mean standard error": float(
            torch.cat([found.error[where] for found, where in zip(values, sampled, strict=True)]).mean()
        ),
        "decided": sum(is_decided(found.advantage) for found in values),
    }


def _view(rollout: Rollout, sight: Sight, values: list[Values], like: Tensor) -> View:
    rows, width = sight.rows, rollout.samples.ids.shape[1]
    truth = torch.zeros(len(rows), width)
    first = int(rollout.measured[0])
    for place, row in enumerate(rows.tolist()):
        found = values[row - first].advantage
        truth[place, : len(found)] = found
    return View(
        torch.where(rollout.samples.mask[rows], sight.log_ratio, 0),
        rollout.samples.mask[rows],
        rollout.advantages[rows],
        rollout.samples.entropy[rows],
        rollout.samples.ids[rows],
        like[rows],
        truth,
    )


def _measured(
    view: View, values: list[Values], rewards: list[float], prompts: list[int], about: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for every response that has a deciding token, and signal."""
    signals = {
        name: signal(view) for name, signal in (SIGNALS | RAW).items() if name != LIKENESS or view.likeness is not None
    }
    for place, (found, reward) in enumerate(zip(values, rewards, strict=True)):
        if not is_decided(found.advantage):
            continue
        mask, left = view.mask[place], reward - found.value[:-1]
        facts = {**about[place], "prompt": prompts[place], "right": bool(reward), "chance": chance(found.advantage)}
        for name, signal in signals.items():
            own = signal[place][mask]
            yield facts | {"signal": name, **of_response(own, found.advantage), "left": rank(own, left)}


def _gradients(rollout: Rollout, sight: Sight, view: View) -> dict[str, dict[str, float]]:
    """Of every signal, its policy gradient beside those of the truth and of the plain advantage."""
    parts = torch.arange(len(sight.rows)).chunk(EIGHTHS)
    gradients = {
        name: torch.stack([_gradient(rollout, sight, signal(view), part) for part in parts])
        for name, signal in SIGNALS.items()
    }
    truth, plain = gradients["truth"].mean(0), gradients["uniform (GRPO)"].mean(0)
    return {
        name: {"with the truth": cosine(own.mean(0), truth), "with GRPO": cosine(own.mean(0), plain)}
        | gradient_measures(own)
        for name, own in gradients.items()
    }


def _gradient(rollout: Rollout, sight: Sight, signal: Tensor, part: Tensor) -> Tensor:
    rows = sight.rows[part]
    logps = response_logps(sight.model, rollout.prompts[rows], rollout.samples.ids[rows], torch.float32)
    mask = rollout.samples.mask[rows]
    objective = (logps * signal[part] * mask).sum() / mask.sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(sight.model.parameters()))])


def _traces(unit: Unit, rollout: Rollout, sight: Sight, view: View) -> Iterator[Trace]:
    """As the trainer would write them, with the truth."""
    new = view.log_ratio + rollout.samples.logps[sight.rows]
    out = fipo_loss(new, rollout.samples.logps[sight.rows], view.advantages, view.mask, FIPOParams())
    columns = token_columns(
        out,
        view.mask,
        logps=new,
        old_logps=rollout.samples.logps[sight.rows],
        advantages=view.advantages[:, None].expand(view.mask.shape),
        entropy=view.entropy,
        true_advantage=view.truth,
    )
    for place, row in enumerate(sight.rows.tolist()):
        kept = view.mask[place].numpy()
        ids = view.ids[place][view.mask[place]]
        reward = float(rollout.rewards[row])
        yield Trace(
            run=f"{unit.chain}_s{unit.seed}",
            rollout=unit.rollout,
            update=sight.update,
            group=int(rollout.groups[row]),
            sample=row,
            prompt=rollout.problems[row].prompt,
            token_ids=ids.int().numpy(),
            token_bytes=[b"" if token == END else ALPHABET[token - 2].encode() for token in ids.tolist()],
            reward=reward,
            rewards={"answer": reward},
            **{name: column[place][kept] for name, column in columns.items()},
        )

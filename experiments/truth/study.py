"""The study's units: one rollout of one training each, its truth, and what every signal makes of it."""

import json
import time
from collections.abc import Callable, Iterator
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
from experiments.truth.last_layer import delta, likeness
from experiments.truth.measures import chance, cosine, gradient_measures, is_decided, of_response, rank
from experiments.truth.replay import Rollout, Sight, replay, rollouts
from experiments.truth.signals import DELTA, LIKENESS, RAW, STABILITY, View, available
from experiments.truth.values import NotMeasurableError, Response, Values, measure, measure_with
from fipo import FIPOParams, token_credit
from fipo.run_folder import whole_file
from fipo.traces import Trace, read_traces, write_traces
from fipo.traces.columns import trace_columns

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
    error: float  # the standard error to which V is known
    measured: int | None = None  # responses; None: all that can be

    @property
    def name(self) -> str:
        return f"{self.chain}_s{self.seed}_r{self.rollout:02}"

    def file(self, kind: str) -> Path:
        return RESULTS / f"{self.name}_{kind}"

    @property
    def done(self) -> bool:
        """Measured, and as exactly as it should be."""
        if not self.file("facts.json").exists():  # it is written last
            return False
        return bool(self.left_out) or self.facts["largest standard error"] <= self.error

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.file("facts.json").read_text())

    @property
    def left_out(self) -> str:
        """Why a unit that is done has nothing measured; else empty."""
        return self.facts.get("left out", "")


UNITS = [
    *(Unit("short", seed, rollout, 0.01, 64) for seed in (0, 1) for rollout in (1, 10, 19)),
    *(Unit("long", seed, rollout, 0.02, 24) for seed in (0, 1) for rollout in (1, 6, 11)),
    *(Unit(SMOLLM2, 0, rollout, 0.03) for rollout in smollm2.ROLLOUTS),
]


def run(unit: Unit) -> tuple[Unit, float]:
    """Measures one unit and writes its files, or why it is left out; returns it with the seconds that it took.

    Where the unit's traces hold the truth of these very responses already, only the signals are measured again, and the
    seconds are the first measurement's.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    try:
        facts = _measure_language_model(unit) if unit.chain == SMOLLM2 else _measure(unit)
    except NotMeasurableError as error:
        facts = {"left out": str(error)}
    facts.setdefault("seconds", round(time.perf_counter() - started))
    with whole_file(unit.file("facts.json")) as file:
        file.write_text(json.dumps(facts, indent=1) + "\n")
    return unit, facts["seconds"]


def _measure(unit: Unit) -> dict[str, Any]:
    """Writes a unit's traces and measures, and returns its facts.

    Raises:
        NotMeasurableError
    """
    setting = SETTINGS[unit.chain]
    ((_, rollout),) = rollouts(setting, unit.seed, [unit.rollout], unit.measured)
    _require_some(len(rollout.measured))
    responses = list(_responses(rollout))
    generator = torch.Generator().manual_seed(unit.seed)
    values, facts = _truth(
        unit, responses, lambda: measure(rollout.model, responses, unit.error, CHAINS[unit.chain].max_tokens, generator)
    )
    of_model, rows = _of_model(rollout), []
    for factor in FACTORS:
        for sight in replay(rollout, factor * setting.learning_rate):
            if sight.update not in UPDATES:
                continue
            view = _view(rollout, sight, values, of_model)
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
        NotMeasurableError
    """
    everything = smollm2.traced(unit.rollout)
    rows = smollm2.measurable(everything)
    traces = [everything[row] for row in rows]
    _require_some(len(traces))
    responses = [smollm2.response_of(trace) for trace in traces]
    policy = smollm2.Policy(unit.rollout, responses)
    difference = policy.difference()
    values, facts = _truth(unit, responses, lambda: measure_with(policy.continued, responses, unit.error))
    width = max(len(response.ids) for response in responses)
    found = {DELTA: policy.delta(everything), STABILITY: policy.drift(everything)}
    of_model = {name: one[rows, :width] for name, one in found.items()}
    view = smollm2.view_of(traces, values, of_model)
    about = [{"factor": 1.0, "update": trace.update} for trace in traces]
    rewards, groups = [response.reward for response in responses], [trace.group for trace in traces]
    _write_measures(unit, list(_measured(view, values, rewards, groups, about)))
    write_traces(
        smollm2.with_truth(traces, values),
        unit.file("traces.parquet"),
        FIPOParams(),
        updates_per_rollout=smollm2.UPDATES,
    )
    return facts | {"difference of log-probs": difference}


def _truth(unit: Unit, responses: list[Response], sample: Callable[[], list[Values]]) -> tuple[list[Values], dict]:
    """The values of the responses, kept or sampled, and the facts of how they were measured."""
    if unit.done and unit.file("traces.parquet").exists():
        if values := known_values(responses, list(read_traces(unit.file("traces.parquet")))):
            return values, unit.facts
        print(f"{unit.name}: the kept truth is that of other responses; sampling it anew.", flush=True)
    values = sample()
    return values, _facts(responses, values)


def known_values(responses: list[Response], traces: list[Trace]) -> list[Values] | None:
    """The values that the traces of these responses tell, without errors and samples; None if one of them is missing.

    V(y<t) is the reward without what the tokens from t on changed.
    """
    changed = {(trace.prompt, tuple(trace.token_ids.tolist())): trace.true_advantage for trace in traces}
    found = []
    for response in responses:
        if (key := (response.prompt, tuple(response.ids))) not in changed:
            return None
        left = torch.tensor(changed[key]).double().flip(0).cumsum(0).flip(0)
        value = torch.cat([response.reward - left, torch.tensor([response.reward])]).round(decimals=6)
        found.append(Values(value, *[torch.zeros(0)] * 3))
    return found


def _require_some(responses: int) -> None:
    if not responses:
        raise NotMeasurableError(
            "no group of the rollout has both rewards, so nothing was decided; measure another rollout."
        )


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
    errors = torch.cat([found.error[where] for found, where in zip(values, sampled, strict=True)])
    return {
        "responses": len(responses),
        "right": sum(response.reward for response in responses),
        "tokens": sum(len(response.ids) for response in responses),
        "prefixes sampled": sum(int(where.sum()) for where in sampled),
        "samples": sum(int(found.drawn.sum()) for found in values),
        "largest standard error": max(float(found.error.max()) for found in values),
        "mean standard error": float(errors.mean()) if len(errors) else 0.0,
        "decided": sum(is_decided(found.advantage) for found in values),
    }


def _of_model(rollout: Rollout) -> dict[str, Tensor]:
    """(B, T) what π_old tells of every response of the rollout."""
    samples, model = rollout.samples, rollout.model
    sequence = torch.cat([rollout.prompts, samples.ids], 1)
    with torch.no_grad():
        hidden = model.model(sequence[:, :-1], use_cache=False).last_hidden_state[:, -samples.ids.shape[1] :]
        probs = model.lm_head(hidden).softmax(-1)
    return {
        LIKENESS: likeness(hidden, probs, samples.ids, rollout.advantages, samples.mask),
        DELTA: delta(hidden, samples.logps, rollout.advantages, samples.mask),
    }


def _view(rollout: Rollout, sight: Sight, values: list[Values], of_model: dict[str, Tensor]) -> View:
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
        truth,
        {name: found[rows] for name, found in of_model.items()},
    )


def _measured(
    view: View, values: list[Values], rewards: list[float], prompts: list[int], about: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for every response that has a deciding token, and signal."""
    signals = {name: signal(view) for name, signal in (available(view) | RAW).items()}
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
    signals = {name: signal(view) for name, signal in available(view).items()}
    parts = [_gradients_of(rollout, sight, signals, part) for part in torch.arange(len(sight.rows)).chunk(EIGHTHS)]
    gradients = {name: torch.stack([part[name] for part in parts]) for name in signals}
    truth, plain = gradients["truth"].mean(0), gradients["uniform (GRPO)"].mean(0)
    return {
        name: {"with the truth": cosine(own.mean(0), truth), "with GRPO": cosine(own.mean(0), plain)}
        | gradient_measures(own)
        for name, own in gradients.items()
    }


def _gradients_of(rollout: Rollout, sight: Sight, signals: dict[str, Tensor], part: Tensor) -> dict[str, Tensor]:
    """Of every signal, its policy gradient on some of the responses, flat."""
    rows, parameters = sight.rows[part], list(sight.model.parameters())
    logps = response_logps(sight.model, rollout.prompts[rows], rollout.samples.ids[rows], torch.float32)
    mask = rollout.samples.mask[rows]
    found = {}
    for name, signal in signals.items():
        objective = (logps * signal[part] * mask).sum() / mask.sum()
        gradients = torch.autograd.grad(objective, parameters, retain_graph=True)
        found[name] = torch.cat([gradient.flatten() for gradient in gradients])
    return found


def _traces(unit: Unit, rollout: Rollout, sight: Sight, view: View) -> Iterator[Trace]:
    """As the trainer would write them, with the truth."""
    new = view.log_ratio + rollout.samples.logps[sight.rows]
    credit = token_credit(new, rollout.samples.logps[sight.rows], view.advantages, view.mask, FIPOParams())
    columns = trace_columns(
        credit,
        view.mask,
        (0.2, 0.28),
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
            **{name: column[place].numpy()[kept] for name, column in columns.items()},
        )

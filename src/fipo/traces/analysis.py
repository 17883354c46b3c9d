"""What traces say about the credit as a whole: `fipo analyze`, and the summary of the report."""

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fipo.core import future_kl, influence_weights
from fipo.core.credit import LOG_RATIO_LIMIT
from fipo.core.logged import NOISE_LIMIT, noise_warning, rounding_warning
from fipo.core.rounding import future_kl_errors, weight_shift
from fipo.errors import DataError
from fipo.params import FIPOParams
from fipo.traces.columns import FLAGS
from fipo.traces.schema import Trace
from fipo.traces.store import TraceSet

DECAY_RATES = (4.0, 8.0, 32.0, 128.0, math.inf)
CLIP_RATIOS = (0.1, 0.2, 0.5)
POSITIONS = 24  # equal parts of a response
ROLLOUT = ("run", "rollout")
LEAST_OCCURRENCES, SHOWN_TOKENS = 5, 15
SATURATED = 0.8  # this share of weights at one bound deserves a word
LARGEST = 1e30  # a weight above this would make sums and squares infinite, which JSON cannot hold
ALIVE = 0.01  # a smaller standard deviation of the weight makes FIPO GRPO
REFLECTION = re.compile("actually|alternatively|but|check|hmm|however|instead|let|maybe|mistake|recheck|verify|wait")
OPERATORS = frozenset("+-−*/=×÷·^<>≤≥≠≈±%")
KINDS: dict[str, Callable[[str, set[str]], bool]] = {  # of a token's text, and of the Unicode classes in it; the first
    "white space": lambda text, _: not text,
    "reflection words": lambda text, _: bool(REFLECTION.fullmatch(text)),
    "digits": lambda _, classes: classes == {"N"},
    "operators": lambda text, _: OPERATORS.issuperset(text),
    "punctuation": lambda _, classes: classes <= {"P", "S"},
    "other": lambda _, __: True,
}


def analyze(traces: TraceSet) -> dict[str, Any]:
    """Numbers about the weights of all trained tokens, as plain Python values that strict JSON can hold.

    Log-ratios beyond ±20, which no trainer writes, count as ±20, and weights above LARGEST as LARGEST, so that every
    number is finite.

    Returns:
        `tokens`, `completions`; `weight` (mean, std, min, max, deciles, share at each bound); `flags` (share of each);
        `what_if` (share clipped and the weight's standard deviation for decay rates × clip ratios); `noise_floor` (at
        update 0, where log-ratios must be 0); `rounding` (expected from the forward's precision after update 0:
        the error of a log-ratio, that of a weight, the share of weights that it may put on the other side of 1);
        `parts`, `kinds`, `rollouts` (the weight by part of the response, by kind of token, and that by rollout);
        `amplified`, `attenuated` (the tokens whose weight is most surely above, below 1); `warnings` (sentences).

    Raises:
        DataError: No trace has log-ratios.
    """
    known = [trace for trace in traces if trace.log_ratio is not None and len(trace.token_ids)]
    if not known:
        raise DataError("No trace holds log-ratios, so there is no credit to analyse; import a dump that records π_θ.")
    params = traces.params or FIPOParams()
    packed = _Packed(known, controlled=traces.control is not None)
    if not packed.trained.any():
        raise DataError("No trace holds a trained token with a finite log-ratio, so there is no credit to analyse.")
    credit = packed.future_kl(params)
    weight, raw = packed.weights(credit, params)
    if traces.control is not None:
        weight = packed.recorded_weight
    trained = packed.trained
    about = {"decay_rate": str(params.decay_rate), "weight_low": params.weight_low, "weight_high": params.weight_high}
    first = trained & np.array([trace.update == 0 for trace in known])[packed.trace]
    noise = {"log_ratio": np.abs(packed.log_ratio), "weight_shift": np.abs(raw - 1)}
    result: dict[str, Any] = {
        "completions": len(known),
        "control": traces.control,
        "tokens": int(trained.sum()),
        "params": about,
        "weight": {
            **{name: float(getattr(weight[trained], name)()) for name in ("mean", "std", "min", "max")},
            "deciles": np.quantile(weight[trained], np.linspace(0, 1, 11)).tolist(),
            **_at_bounds(raw[trained], params),
        },
        "flags": {name: float((packed.flags[trained] & bit > 0).mean()) for name, bit in FLAGS.items()},
        "what_if": _what_if(packed, params),
        "noise_floor": {name: float(x[first].mean()) for name, x in noise.items()} if first.any() else None,
        "rounding": _rounding(packed, credit, params, trained & ~first, traces.log_ratio_error),
    }
    result |= _tables(packed, weight)
    broken = f"{packed.broken} tokens have a log-ratio or weight that is not finite; look for NaN in the log-probs."
    return result | {"warnings": [broken] * (packed.broken > 0) + _warnings(result)}


class _Packed:
    """The traces' tokens in one row."""

    def __init__(self, traces: list[Trace], *, controlled: bool) -> None:
        self.traces, lengths = traces, [len(trace.token_ids) for trace in traces]

        def join(name: str, default: float) -> np.ndarray:
            columns = (getattr(trace, name) for trace in traces)
            filled = (np.full(n, default) if c is None else c for c, n in zip(columns, lengths, strict=True))
            return np.concatenate(list(filled)).astype("float64")

        self.log_ratio, self.trained = join("log_ratio", 0), join("trained", 1).astype(bool)
        self.recorded_weight = join("weight", 1)
        finite = np.isfinite(self.log_ratio) & (np.isfinite(self.recorded_weight) | (not controlled))
        self.broken = int((self.trained & ~finite).sum())
        self.log_ratio = np.where(finite, self.log_ratio, 0).clip(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        self.trained &= finite
        self.advantages, self.flags = join("advantages", 0), join("flags", 0).astype("uint8")
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
        self.position = np.concatenate([np.arange(n) for n in lengths])
        self.trace, self.length = np.repeat(np.arange(len(traces)), lengths), np.repeat(lengths, lengths)

    def future_kl(self, params: FIPOParams) -> torch.Tensor:
        trained = torch.from_numpy(self.trained)
        return future_kl(torch.from_numpy(self.log_ratio), trained, params, cu_seqlens=self.cu_seqlens)

    def weights(self, credit: torch.Tensor, params: FIPOParams) -> tuple[np.ndarray, np.ndarray]:
        """Final and raw weight of every token with this future_kl."""
        log_ratio, advantages = torch.from_numpy(self.log_ratio), torch.from_numpy(self.advantages)
        weight = influence_weights(credit, log_ratio, advantages, params)
        return weight.clamp(max=LARGEST).numpy(), credit.exp().clamp(max=LARGEST).numpy()


def _rounding(
    packed: _Packed, credit: torch.Tensor, params: FIPOParams, moved: np.ndarray, error: float | None
) -> dict[str, float] | None:
    if error is None or not moved.any():
        return None
    columns = torch.from_numpy(packed.log_ratio), torch.from_numpy(packed.advantages)
    errors = future_kl_errors(torch.from_numpy(packed.trained), error, params, packed.cu_seqlens)
    shift = weight_shift(credit, errors, *columns, params)
    unsure = (credit.abs() < errors).numpy()[moved]
    return {"log_ratio": error, "weight": float(shift.numpy()[moved].mean()), "unsure": float(unsure.mean())}


def _what_if(packed: _Packed, params: FIPOParams) -> list[dict[str, Any]]:
    rows = []
    for decay_rate in DECAY_RATES:
        credit = packed.future_kl(replace(params, decay_rate=decay_rate))
        for clip in CLIP_RATIOS:
            changed = replace(params, clip_ratio_low=clip, clip_ratio_high=clip)
            weight, raw = (values[packed.trained] for values in packed.weights(credit, changed))
            shown = "inf" if math.isinf(decay_rate) else decay_rate  # for strict JSON
            row: dict[str, Any] = {"decay_rate": shown, "clip_ratio": clip, "std": float(weight.std())}
            rows.append(row | _at_bounds(raw, changed))
    return rows


def _at_bounds(raw: np.ndarray, params: FIPOParams) -> dict[str, float]:
    return {"at_low": float((raw < params.weight_low).mean()), "at_high": float((raw > params.weight_high).mean())}


def _tables(packed: _Packed, weight: np.ndarray) -> dict[str, Any]:
    """The trained tokens by part of the response, kind of token, rollout, and token."""
    pieces = (piece for trace in packed.traces for piece in trace.token_bytes)
    encoded = pa.array(pieces, pa.large_binary()).dictionary_encode()
    vocabulary = [piece.decode(errors="replace") for piece in encoded.dictionary.to_pylist()]
    columns = {name: pa.array([getattr(t, name) for t in packed.traces]).take(packed.trace) for name in ROLLOUT}
    columns |= {"part": packed.position * POSITIONS // packed.length, "token": encoded.indices}
    columns |= {"kind": pa.array(map(_kind, vocabulary), pa.string()).take(encoded.indices)}
    columns |= {"weight": weight, "above": weight > 1, "below": weight < 1}
    tokens = pa.table(columns).filter(packed.trained)

    def by(*keys: str) -> list[dict[str, Any]]:
        wanted = [("weight", "count"), ("weight", "mean"), ("above", "mean"), ("below", "mean")]
        found = tokens.group_by(list(keys)).aggregate(wanted).sort_by([(key, "ascending") for key in keys])
        rows: list[dict[str, Any]] = found.rename_columns([*keys, "tokens", "mean", "above", "below"]).to_pylist()
        return rows

    often = [row | {"token": vocabulary[row["token"]]} for row in by("token") if row["tokens"] >= LEAST_OCCURRENCES]

    def leading(side: str) -> list[dict[str, Any]]:
        found = [row for row in often if row[side] > 0]
        return sorted(found, key=lambda row: -lower_share(row[side], row["tokens"]))[:SHOWN_TOKENS]

    kinds = {"kinds": by("kind"), "rollouts": by(*ROLLOUT, "kind")}
    return kinds | {"parts": by("part"), "amplified": leading("above"), "attenuated": leading("below")}


def _kind(text: str) -> str:
    text = text[:64].strip().lower()
    classes = {unicodedata.category(character)[0] for character in text}
    return next(name for name, holds in KINDS.items() if holds(text, classes))


def lower_share(share: float, count: int) -> float:
    """The lower end of a 95 % interval of a share (Wilson's), so that rare tokens do not lead the tables."""
    z = 1.96
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (share + z * z / (2 * count) - spread) / (1 + z * z / count)


def _warnings(result: dict[str, Any]) -> list[str]:
    weight, noise, found = result["weight"], result["noise_floor"], []
    for name, side in (("at_high", "upper"), ("at_low", "lower")):
        if weight[name] > SATURATED:
            found.append(
                f"{weight[name]:.0%} of weights sit at the {side} bound, so they distinguish few tokens: lower the "
                "learning rate or decay_rate, or widen the clip ratios."
            )
    if weight["std"] < ALIVE and result["control"] is None:
        found.append(
            f"The weights' standard deviation is {weight['std']:.2g}, so this is almost GRPO: the policy hardly moves "
            "within a rollout; take more updates per rollout or a higher learning rate."
        )
    if noise and noise["weight_shift"] > NOISE_LIMIT:
        causes = "look for log-probs of the rollout engine as π_old, rounded logits, dropout, or a temperature mismatch"
        found.append(noise_warning(noise["weight_shift"], causes))
    if (rounding := result["rounding"]) and rounding["weight"] > NOISE_LIMIT:
        found.append(rounding_warning(rounding["weight"], "compute them in float16 or float32"))
    return found

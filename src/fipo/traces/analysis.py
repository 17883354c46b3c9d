"""What traces say about the credit as a whole: `fipo analyze`."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fipo.core import future_kl, influence_weights
from fipo.core.credit import LOG_RATIO_LIMIT
from fipo.core.logged import NOISE_LIMIT, noise_warning
from fipo.errors import DataError
from fipo.params import FIPOParams
from fipo.traces.schema import FLAGS, Trace
from fipo.traces.store import TraceSet

DECAY_RATES = (4.0, 8.0, 32.0, 128.0, math.inf)
CLIP_RATIOS = (0.1, 0.2, 0.5)
BINS = 20
SATURATED = 0.8  # this share of weights at one bound deserves a word
LARGEST = 1e30  # a weight above this would make sums and squares infinite, which JSON cannot hold
ALIVE = 0.01  # a smaller standard deviation of the weight makes FIPO GRPO


def analyze(traces: TraceSet) -> dict[str, Any]:
    """Numbers about the weights of all trained tokens, as plain Python values that strict JSON can hold.

    Log-ratios beyond ±20, which no trainer writes, count as ±20, and weights above LARGEST as LARGEST, so that every
    number is finite.

    Returns:
        `tokens`, `completions`; `weight` (mean, std, min, max, deciles, share at each bound); `flags` (share of each);
        `what_if` (share clipped and the weight's standard deviation for decay rates × clip ratios); `explained` (share
        of the weight's variance that goes with position, with the token's own log-ratio, and with the same number of
        random bins); `noise_floor` (at update 0, where log-ratios must be 0); `warnings` (sentences).

    Raises:
        DataError: No trace has log-ratios.
    """
    known = [trace for trace in traces if trace.log_ratio is not None and len(trace.token_ids)]
    if not known:
        raise DataError("No trace holds log-ratios, so there is no credit to analyse; import a dump that tells π_θ.")
    params = traces.params or FIPOParams()
    packed = _Packed(known, controlled=traces.control is not None)
    if not packed.trained.any():
        raise DataError("No trace holds a trained token with a finite log-ratio, so there is no credit to analyse.")
    weight, raw = packed.weights(params)
    if traces.control is not None:
        weight = packed.recorded_weight
    trained = packed.trained
    result: dict[str, Any] = {
        "completions": len(known),
        "tokens": int(trained.sum()),
        "params": {
            "decay_rate": str(params.decay_rate),
            "weight_low": params.weight_low,
            "weight_high": params.weight_high,
        },
        "weight": _distribution(weight[trained], raw[trained], params),
        "flags": {name: float((packed.flags[trained] & bit > 0).mean()) for name, bit in FLAGS.items()},
        "what_if": [_what_if(packed, params, decay, clip) for decay in DECAY_RATES for clip in CLIP_RATIOS],
        "explained": _explained(packed, weight),
        "noise_floor": _noise_floor(packed, raw),
    }
    broken = f"{packed.broken} tokens have a log-ratio or weight that is not finite; look for NaN in the log-probs."
    return result | {"warnings": [broken] * (packed.broken > 0) + _warnings(result)}


class _Packed:
    """The traces' tokens in one row."""

    def __init__(self, traces: list[Trace], *, controlled: bool) -> None:
        lengths = [len(trace.token_ids) for trace in traces]

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
        self.update = np.repeat([trace.update for trace in traces], lengths)

    def weights(self, params: FIPOParams) -> tuple[np.ndarray, np.ndarray]:
        """Final and raw weight of every token."""
        log_ratio = torch.from_numpy(self.log_ratio)
        credit = future_kl(log_ratio, torch.from_numpy(self.trained), params, cu_seqlens=self.cu_seqlens)
        weight = influence_weights(credit, log_ratio, torch.from_numpy(self.advantages), params)
        return weight.clamp(max=LARGEST).numpy(), credit.exp().clamp(max=LARGEST).numpy()


def _distribution(weight: np.ndarray, raw: np.ndarray, params: FIPOParams) -> dict[str, Any]:
    return {
        **{name: float(getattr(weight, name)()) for name in ("mean", "std", "min", "max")},
        "deciles": [float(x) for x in np.quantile(weight, np.linspace(0, 1, 11))],
        "at_low": float((raw < params.weight_low).mean()),
        "at_high": float((raw > params.weight_high).mean()),
    }


def _what_if(packed: _Packed, params: FIPOParams, decay_rate: float, clip: float) -> dict[str, Any]:
    changed = replace(params, decay_rate=decay_rate, clip_ratio_low=clip, clip_ratio_high=clip)
    weight, raw = (values[packed.trained] for values in packed.weights(changed))
    found = _distribution(weight, raw, changed)
    decay = "inf" if math.isinf(decay_rate) else decay_rate  # JSON knows no infinity
    return {"decay_rate": decay, "clip_ratio": clip} | {name: found[name] for name in ("at_low", "at_high", "std")}


def _explained(packed: _Packed, weight: np.ndarray) -> dict[str, float]:
    trained = packed.trained
    rng = np.random.default_rng(0)
    return {
        "position": _share_of_variance(weight[trained], packed.position[trained]),
        "own_log_ratio": _share_of_variance(weight[trained], packed.log_ratio[trained]),
        "chance": _share_of_variance(weight[trained], rng.random(int(trained.sum()))),
    }


def _share_of_variance(values: np.ndarray, by: np.ndarray) -> float:
    """η²: the variance between the means of BINS equally filled bins of `by`, as a share of the whole."""
    total = values.var()
    if total == 0:
        return 0.0
    edges = np.quantile(by, np.linspace(0, 1, BINS + 1)[1:-1])
    bins = np.searchsorted(edges, by, side="right")
    counts = np.bincount(bins, minlength=BINS)
    means = np.bincount(bins, values, minlength=BINS) / np.maximum(counts, 1)
    return float((counts * (means - values.mean()) ** 2).sum() / (len(values) * total))


def _noise_floor(packed: _Packed, raw: np.ndarray) -> dict[str, float] | None:
    first = packed.trained & (packed.update == 0)
    if not first.any():
        return None
    shift = np.abs(raw[first] - 1).mean()
    return {"log_ratio": float(np.abs(packed.log_ratio[first]).mean()), "weight_shift": float(shift)}


def _warnings(result: dict[str, Any]) -> list[str]:
    weight, noise, found = result["weight"], result["noise_floor"], []
    for name, side in (("at_high", "upper"), ("at_low", "lower")):
        if weight[name] > SATURATED:
            found.append(
                f"{weight[name]:.0%} of weights sit at the {side} bound, so they tell little about tokens: lower the "
                "learning rate or decay_rate, or widen the clip ratios."
            )
    if weight["std"] < ALIVE:
        found.append(
            f"The weights' standard deviation is {weight['std']:.2g}, so this is almost GRPO: the policy hardly moves "
            "within a rollout; take more updates per rollout or a higher learning rate."
        )
    if noise and noise["weight_shift"] > NOISE_LIMIT:
        causes = "look for log-probs of the rollout engine as π_old, rounded logits, dropout, or a temperature mismatch"
        found.append(noise_warning(noise["weight_shift"], causes))
    return found

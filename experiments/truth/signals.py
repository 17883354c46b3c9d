"""Credit signals: a number a token, positive where the update makes the token likelier."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fipo import FIPOParams, future_kl, token_credit
from fipo.core.rules import controlled, response_orders

DEFAULT = FIPOParams()
LIKENESS, DELTA, STABILITY = "likeness (after DelTA)", "DelTA (reimplemented)", "stability (after SCAPO)"


@dataclass(frozen=True)
class View:
    """What a signal may know of R responses at one update; all (R, T) but the advantages (R,)."""

    log_ratio: Tensor
    mask: Tensor
    advantages: Tensor
    entropy: Tensor  # under π_old, nats
    ids: Tensor
    truth: Tensor  # V(y≤t) − V(y<t)
    of_model: Mapping[str, Tensor]  # what only π_old itself tells, by the name of the signal that needs it


Signal = Callable[[View], Tensor]


def weighted(view: View, params: FIPOParams = DEFAULT) -> Tensor:
    """FIPO: advantage × weight."""
    new = view.log_ratio
    weight = token_credit(new, torch.zeros_like(new), view.advantages, view.mask, params).weight
    return view.advantages[:, None] * weight


def clipped(view: View, exponent: Tensor) -> Tensor:
    """Advantage × exp(exponent), in the range of FIPO's weights."""
    return view.advantages[:, None] * exponent.exp().clamp(DEFAULT.weight_low, DEFAULT.weight_high)


def past(view: View) -> Tensor:
    """The log-ratios up to the token instead of those from it on."""
    reversed_sum = future_kl(view.log_ratio.flip(-1), view.mask.flip(-1), DEFAULT)
    return clipped(view, reversed_sum.flip(-1))


def shuffled(view: View) -> Tensor:
    """FIPO's weights in another order within each response."""
    rows = zip(weighted(view), view.mask, response_orders(view.ids), strict=True)
    return torch.stack([controlled(signal, mask, "shuffle", order) for signal, mask, order in rows])


def by_position(view: View) -> Tensor:
    """Falls along the response, from the upper bound of FIPO's weights to the lower."""
    place = view.mask.cumsum(-1) / view.mask.sum(-1, keepdim=True)
    return view.advantages[:, None] * (DEFAULT.weight_high + (DEFAULT.weight_low - DEFAULT.weight_high) * place)


def by_entropy(view: View) -> Tensor:
    """Entropy of π_old at the token."""
    return view.advantages[:, None] * view.entropy


def by_likeness(view: View) -> Tensor:
    """DelTA's idea (arXiv:2605.21467), not its formula: more where a token's gradient is like its own side's."""
    return clipped(view, view.advantages.sign()[:, None] * view.of_model[LIKENESS])


def by_delta(view: View) -> Tensor:
    """Advantage × DelTA's weight, as its authors released it (see `last_layer.delta`)."""
    return view.advantages[:, None] * view.of_model[DELTA]


def by_stability(view: View) -> Tensor:
    """SCAPO's idea (arXiv:2609.40360), not its formula: less where a probability moves with what should not matter."""
    return clipped(view, -view.of_model[STABILITY].clamp(min=0))


SIGNALS: dict[str, Signal] = {
    "FIPO": weighted,
    **{
        f"FIPO, half-life {half_life:g}": partial(weighted, params=replace(DEFAULT, decay_rate=half_life))
        for half_life in (1.0, 8.0, 128.0, float("inf"))
    },
    "FIPO, high only": partial(weighted, params=replace(DEFAULT, clip_high_only=True)),
    "FIPO, signed": lambda view: clipped(
        view, view.advantages.sign()[:, None] * future_kl(view.log_ratio, view.mask, DEFAULT)
    ),
    "own log-ratio": lambda view: clipped(view, view.log_ratio),
    "own log-ratio, signed": lambda view: clipped(view, view.advantages.sign()[:, None] * view.log_ratio),
    "past log-ratios": past,
    "entropy": by_entropy,
    "position": by_position,
    LIKENESS: by_likeness,
    DELTA: by_delta,
    STABILITY: by_stability,
    "shuffled": shuffled,
    "uniform (GRPO)": lambda view: view.advantages[:, None].expand(view.mask.shape),
    "truth": lambda view: view.truth,
}
# Not multiplied by the advantage: what the prediction is about
RAW: dict[str, Signal] = {
    "log-ratio": lambda view: view.log_ratio,
    "future-KL, half-life 32": lambda view: future_kl(view.log_ratio, view.mask, DEFAULT),
    "future-KL, half-life inf": lambda view: future_kl(
        view.log_ratio, view.mask, replace(DEFAULT, decay_rate=float("inf"))
    ),
}


def available(view: View) -> dict[str, Signal]:
    """The signals that this view tells enough for."""
    missing = {LIKENESS, DELTA, STABILITY} - set(view.of_model)
    return {name: signal for name, signal in SIGNALS.items() if name not in missing}

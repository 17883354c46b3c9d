"""Controls for experiments: does the credit matter, or only its spread, or only its mean?"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from zlib import crc32

import torch
from torch import Tensor

from fipo.core.loss import FIPOOutput
from fipo.errors import InvalidParameterError

CONTROLS = {
    "none": "all weights are 1, which is GRPO with the same drop",
    "uniform": "each response's mean weight at all its tokens",
    "shuffle": "each response's weights in an order of their own, the same at each of its updates",
}

HELP = "For experiments, other weights than FIPO's. " + "; ".join(f"{name}: {what}" for name, what in CONTROLS.items())


def check_control(name: str, control: str | None) -> None:
    """Raises InvalidParameterError, with the setting's name, unless it is one of CONTROLS or None."""
    if control not in (None, *CONTROLS):
        raise InvalidParameterError(f"{name} is {control!r}, but must be one of {', '.join(CONTROLS)}, or not given.")


def control_weights(out: FIPOOutput, trained: Tensor, control: str, orders: Iterable[torch.Generator]) -> FIPOOutput:
    """`out` with other weights at the trained tokens of every response; everything else as it was.

    Args:
        out: From `fipo_loss`, (B, T).
        trained: (B, T) bool: the loss mask.
        control: One of CONTROLS.
        orders: A generator on the CPU for each response, for the shuffle: see `response_orders`.
    """
    weight = out.weight.clone()
    for row, mask, order in zip(weight, trained, orders, strict=True):
        row.copy_(controlled(row, mask, control, order))
    return with_weights(out, weight)


def controlled(weight: Tensor, trained: Tensor, control: str, order: torch.Generator) -> Tensor:
    """One response's weights (T,) under a control, at its trained tokens (T,)."""
    if control == "none":
        return torch.ones_like(weight)
    found = weight.clone()
    if control == "uniform":
        found[trained] = weight[trained].mean()
    else:
        places = torch.randperm(int(trained.sum()), generator=order).to(weight.device)
        found[trained] = weight[trained][places]
    return found


def with_weights(out: FIPOOutput, weight: Tensor) -> FIPOOutput:
    """`out` with these weights. A positive weight scales a token's loss, clips included: times new over old weight."""
    return replace(out, weight=weight, loss=out.loss * (weight / out.weight))


def response_orders(responses: Iterable[Tensor]) -> Iterator[torch.Generator]:
    """A generator for each response, seeded by its data: the same at every update and however a batch is split.

    Args:
        responses: What is fixed about each when the rollout ends: its token ids, or its old log-probs.
    """
    for response in responses:
        data = response.detach().cpu().contiguous().view(torch.uint8)
        yield torch.Generator().manual_seed(crc32(data.numpy().tobytes()))

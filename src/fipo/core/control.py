"""Controls for experiments: does the credit matter, or only its spread, or only its mean?"""

from dataclasses import replace

import torch
from torch import Tensor

from fipo.core.loss import FIPOOutput

CONTROLS = ("none", "uniform", "shuffle")


def control_weights(out: FIPOOutput, trained: Tensor, control: str, generator: torch.Generator) -> FIPOOutput:
    """`out` with other weights at the trained tokens of every response; everything else as it was.

    A positive weight scales a token's loss, clips included, so the new loss is the old one times new over old weight.

    Args:
        out: From `fipo_loss`, (B, T).
        trained: (B, T) bool: the loss mask.
        control: "none": all weights 1, which is GRPO with the same drop. "uniform": each response's mean weight at all
            its tokens. "shuffle": each response's weights in a random order.
        generator: Of the shuffle, on the CPU.

    Returns:
        A FIPOOutput whose `loss` and `weight` are replaced.
    """
    old = out.weight
    if control == "none":
        weight = torch.ones_like(old)
    elif control == "uniform":
        mean = torch.where(trained, old, 0).sum(-1, keepdim=True) / trained.sum(-1, keepdim=True).clamp(min=1)
        weight = torch.where(trained, mean, old)
    else:
        weight = old.clone()
        for row, mask in zip(weight, trained, strict=True):
            order = torch.randperm(int(mask.sum()), generator=generator).to(row.device)
            row[mask] = row[mask][order]
    return replace(out, weight=weight, loss=out.loss * (weight / old))

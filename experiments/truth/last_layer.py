"""Is a token's gradient at the last layer like that of right responses, or of wrong ones?

That gradient is hidden state ⊗ (one-hot − probabilities). The batch is a rollout's B responses, under π_old.
"""

import torch
from torch import Tensor

DELTA_LOW, DELTA_HIGH = 0.8, 1.2


def delta(hidden: Tensor, logps: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """DelTA's weights (B, T), a reimplementation of the authors' released code (RUCBM/DelTA at cf048bd, dp_actor.py).

    A token's proxy is (1 − π(y_t)) · hidden state. Each side has a centroid, the mean of its tokens weighted by the
    advantages' size; a token's margin is how much nearer it is to its own side's than to the other's (squared
    distances), over the margins' standard deviation. Its sigmoid weighs the tokens once more for a second centroid, and
    for that one gives the weight, from 0.8 to 1.2, with mean 1. Tokens without advantage get the lowest.

    Args:
        hidden: (B, T, H) what goes into the head.
        logps: (B, T) log π_old(y_t).
        advantages: (B,).
        mask: (B, T) bool.
    """
    proxy = (1 - logps.exp())[..., None] * hidden
    size, sides = advantages.abs()[:, None] * mask, [(side * advantages > 0)[:, None] & mask for side in (1, -1)]
    margins = _margins(proxy, sides, size)
    scales = [_deviation(margins[tokens]) for tokens in sides]

    def belonging(margins: Tensor) -> Tensor:
        return sum(torch.sigmoid(margins / scale) * tokens for scale, tokens in zip(scales, sides, strict=True))

    again = _margins(proxy, sides, size * belonging(margins))
    weights = (DELTA_LOW + (DELTA_HIGH - DELTA_LOW) * belonging(again)) * mask
    return weights * mask.sum() / weights.sum()


def _margins(proxy: Tensor, sides: list[Tensor], size: Tensor) -> Tensor:
    """(B, T) squared distance from the other side's centroid less that from the own one; 0 for tokens of neither."""
    right, wrong = (
        torch.einsum("bt,bth->h", size * tokens, proxy) / (size * tokens).sum().clamp(min=1e-8) for tokens in sides
    )
    margin = 2 * proxy @ (right - wrong) + wrong.square().sum() - right.square().sum()
    return margin * sides[0] - margin * sides[1]


def _deviation(margins: Tensor) -> Tensor:
    """Standard deviation of margins, of which there may be none."""
    return (margins.square().mean() - margins.mean().square()).nan_to_num().clamp(min=1e-8).sqrt()


def likeness(hidden: Tensor, probs: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """(B, T) cosine of a token's gradient with that of right responses, less that with wrong ones.

    A side's gradient is the mean over its tokens, weighted by their advantages' size.

    Args:
        hidden: (B, T, H) what goes into the head.
        probs: (B, T, V) of π_old.
        ids: (B, T).
        advantages: (B,).
        mask: (B, T) bool.
    """
    residual = -probs
    residual.scatter_add_(-1, ids[..., None], torch.ones_like(residual[..., :1]))
    cosines = []
    for side in (1, -1):
        size = (side * advantages).clamp(min=0)[:, None] * mask
        mean = torch.einsum("bt,bth,btv->hv", size, hidden, residual)
        inner = torch.einsum("bth,btv,hv->bt", hidden, residual, mean)
        cosines.append(inner / (hidden.norm(dim=-1) * residual.norm(dim=-1) * mean.norm()).clamp(min=1e-12))
    return cosines[0] - cosines[1]

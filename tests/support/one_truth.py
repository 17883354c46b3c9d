"""One random batch, and what the naive FIPO gives it: the trainer and every engine's plugin are held to that.

The batch is told by its log-ratios. An engine scores with a model of its own; π_old is that minus them.
"""

import torch

from fipo import FIPOParams
from support import naive

PARAMS = FIPOParams(decay_rate=6.0)
EPSILON_LOW, EPSILON_HIGH = 0.2, 0.28
BETA, ENTROPY_COEF = 0.3, 0.05  # of the regularized case: a KL to a reference, an entropy bonus
ROWS, TOKENS = 6, 23
DROPPED, OUTSIDE, CAPPED = 2, 4, 5  # rows: of two dual-clipped tokens, of one that future_kl leaves out, of a risky one


def batch():
    """float64: log_ratio, advantages and mask (ROWS, TOKENS), lengths (ROWS,). The masks have holes."""
    generator = torch.Generator().manual_seed(0)
    log_ratio = 0.15 * torch.randn(ROWS, TOKENS, generator=generator, dtype=torch.double)
    advantages = torch.randn(ROWS, 1, generator=generator, dtype=torch.double).expand(ROWS, TOKENS).clone()
    lengths = torch.tensor([TOKENS, 1, 9, 17, 14, 20])
    mask = (torch.arange(TOKENS) < lengths[:, None]) & (torch.rand(ROWS, TOKENS, generator=generator) < 0.8)
    mask[:, 0] = True
    log_ratio[DROPPED, :2], mask[DROPPED, :2], advantages[DROPPED] = 3.0, True, -1.0
    log_ratio[OUTSIDE, 3], mask[OUTSIDE, 3], advantages[OUTSIDE] = 3.0, True, 1.0
    log_ratio[CAPPED, 4], mask[CAPPED, 4], advantages[CAPPED] = 2.5, True, -0.5
    gap = 0.4 * torch.randn(ROWS, TOKENS, generator=generator, dtype=torch.double)  # log π_ref − log π_θ
    return {"log_ratio": log_ratio, "advantages": advantages, "mask": mask, "lengths": lengths, "reference_gap": gap}


def expected():
    """Weights (ROWS, TOKENS); the loss, a mean over all trained tokens; its slope by every log-prob (ROWS, TOKENS)."""
    data = batch()
    tokens = int(data["mask"].sum())
    weights, losses, slopes = [], [], []
    for ratio, advantage, mask in zip(*(data[k].tolist() for k in ("log_ratio", "advantages", "mask")), strict=True):
        loss, slope, weight, dropped = naive.fipo(
            ratio, [0.0] * TOKENS, advantage, mask, PARAMS, EPSILON_LOW, EPSILON_HIGH
        )
        weights.append(weight)
        losses.append(0.0 if dropped else sum(loss))
        slopes.append([0.0 if dropped else value / tokens for value in slope])
    return torch.tensor(weights, dtype=torch.double), sum(losses) / tokens, torch.tensor(slopes, dtype=torch.double)


def assert_same_credit(weight, loss, entropy=None):
    """Holds an engine's weights, where trained, to 1e-6, and its loss to the naive one's.

    `entropy` (ROWS, TOKENS): of the policy, in the regularized case; the dropped sequence's KL and entropy stay in.
    """
    weights, total, _ = expected()
    mask = batch()["mask"]
    if entropy is not None:
        gap = batch()["reference_gap"][mask]
        total += float((BETA * (gap.exp() - gap - 1) - ENTROPY_COEF * entropy.double()[mask]).mean())
    assert float((weights[mask] - 1).abs().max()) > 0.1  # there is something to get wrong
    torch.testing.assert_close(weight.double()[mask], weights[mask], rtol=0, atol=1e-6)
    assert abs(float(loss) - total) < 1e-6 * abs(total), (float(loss), total)


def assert_same_gradients(found, logps, parameters, entropy=None):
    """Holds gradients to those that the naive slopes give through the same log-probs and entropies (ROWS, TOKENS)."""
    slopes, mask, gap = expected()[2], batch()["mask"], batch()["reference_gap"]
    objective = (slopes * logps).sum()
    if entropy is not None:
        objective = objective + (BETA * (1 - gap.exp()) * logps - ENTROPY_COEF * entropy)[mask].sum() / mask.sum()
    wanted = torch.autograd.grad(objective, parameters, allow_unused=True)
    for have, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-7)  # TRL scores in float32

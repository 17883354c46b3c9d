"""From hidden states to the FIPO loss and its gradients in one pass, without ever holding the logits.

What FIPO needs at a token lies at that token or after it. So the walk starts at the last token: for a chunk it computes
logits, log-probs, the scan with the carry from the right, weights, loss and d loss / d log-prob, and, with the logits
still in hand, the gradients of the hidden states and the head. Then the buffer is free for the chunk to the left. That
takes three matrix products, the fewest possible, and the memory of one chunk.

Only the sequence drop depends on what lies to the left. When a sequence turns out dropped after chunks of it were
differentiated, their gradients are taken back by scoring those tokens once more.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fipo.core.lm_head import Head
from fipo.core.loss import FIPOOutput, check_layout, per_token
from fipo.core.objective import TokenBatch
from fipo.core.reverse_pass import ReversePass
from fipo.errors import InvalidInputError, InvalidParameterError
from fipo.params import FIPOParams

CPU_BUDGET = 64 << 20  # 341 tokens × 49152: enough for products at full speed
ACCELERATOR_BUDGET = 1 << 30  # not measured: no accelerator was at hand


@dataclass(frozen=True, slots=True)
class StreamingOutput:
    """The result of `streaming_fipo_loss`; tensors without a word are (B, T), or (N,) packed. Only `loss` has a
    gradient."""

    loss: Tensor  # scalar
    tokens: FIPOOutput
    logps: Tensor  # log π_θ of the targets, 0 outside the loss mask
    entropy: Tensor  # of π_θ, in nats, 0 outside the loss mask


def streaming_fipo_loss(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    params: FIPOParams,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.28,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    ref_logps: Tensor | None = None,
    beta: float = 0.0,
    unbiased_kl: bool = False,
    entropy_coef: float | Tensor = 0.0,
    importance_weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
) -> StreamingOutput:
    """The FIPO loss of hidden states in one reverse pass; see the module's docstring.

        loss = Σ_{t kept} (importance_weight_t · fipo_t + beta · kl_t − entropy_coef_t · entropy_t) / denominator_t

    Equals `fipo_loss` and `token_objective` on log-probs of `softcap(scale · (hidden @ weightᵀ + bias)) / temperature`,
    in values and in all gradients. Only trained tokens are projected. Gradients are computed along with the loss;
    `backward` only scales them, and works once.

    Args:
        hidden: (B, T, H) last hidden states, the t-th predicting the t-th target; or (N, H) packed with `cu_seqlens`.
            float16, bfloat16, float32 or float64. Differentiable.
        lm_head_weight: (V, H); the embeddings' weight where they are tied. Differentiable; frozen, it costs nothing.
        targets: (B, T) or (N,) integer ids of the sampled tokens; anything outside the loss mask.
        old_logps, advantages, loss_mask, params, epsilon_low, epsilon_high, cu_seqlens: As for `fipo_loss`.
        bias: (V,). Differentiable.
        temperature, logit_softcap, logit_scale: From products to logits, as above.
        ref_logps: Like `old_logps`: the reference policy's, needed with `beta`.
        beta: Coefficient of KL(π_θ ‖ π_ref).
        unbiased_kl: See `reference_kl`.
        entropy_coef: Coefficient of the entropy bonus: a number, or one a sequence or token like `advantages`.
        importance_weights: Like `old_logps`: factors of the policy loss, as for another sampling engine.
        denominator: A number, or one a sequence or token like `advantages`. By default the number of kept tokens.
        chunk_tokens: Trained tokens in a chunk; by default as many as `memory_budget` holds.
        memory_budget: Bytes for a chunk's logits; by default 64 MiB or an eighth of the head's gradient on a CPU, 1 GiB
            elsewhere. Peak memory is about this and the gradients, whatever B, T and V.

    Returns:
        A StreamingOutput, in float32, or float64 where an input is.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit, or a trained target lies outside the vocabulary.
        InvalidParameterError: A number is out of range, or the budget does not hold one token.
    """
    inputs = (hidden, lm_head_weight, bias)
    _check_tensors(*inputs, targets, loss_mask)
    check_layout({"old_logps": old_logps, "loss_mask": loss_mask}, cu_seqlens)
    frozen_bias = None if bias is None else bias.detach()
    head = Head(hidden, lm_head_weight.detach(), frozen_bias, temperature, logit_softcap, logit_scale)

    def spread(name: str, values: float | Tensor) -> Tensor:
        return per_token(name, values, loss_mask, cu_seqlens).to(head.dtype)

    has_bonus = isinstance(entropy_coef, Tensor) or entropy_coef != 0
    batch = TokenBatch(
        old_logps=old_logps,
        advantages=spread("advantages", advantages),
        loss_mask=loss_mask.bool(),
        ref_logps=ref_logps,
        importance_weights=importance_weights,
        entropy_coef=spread("entropy_coef", entropy_coef) if has_bonus else None,
        denominator=None if denominator is None else spread("denominator", denominator),
    )
    _check_batch(batch, beta)
    walk = ReversePass(
        head,
        hidden.detach(),
        targets,
        batch,
        _boundaries(loss_mask, cu_seqlens),
        _chunk_tokens(head, chunk_tokens, memory_budget),
        {"params": params, "epsilon_low": epsilon_low, "epsilon_high": epsilon_high},
        {"beta": beta, "unbiased_kl": unbiased_kl},
    )
    needed = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs]
    loss = _WithGradients.apply(*inputs, walk, needed)
    shape = loss_mask.shape
    per_position = {f.name: getattr(walk.out, f.name).view(shape) for f in fields(FIPOOutput) if f.name != "dropped"}
    tokens = FIPOOutput(**per_position, dropped=walk.out.dropped)
    return StreamingOutput(loss, tokens, walk.logps.view(shape), walk.entropy.view(shape))


@torch.no_grad()
def streaming_logps(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and entropies in nats, chunk by chunk, without gradient.

    The arithmetic is that of `streaming_fipo_loss`, so log-ratios of an unchanged policy are 0, up to the rounding of
    float32 products of other shapes.

    Args:
        hidden, targets: (B, T, H) and (B, T), or (N, H) and (N,).
        mask: Like `targets`, boolean or 0/1: where log-probs are wanted.
        lm_head_weight, bias, temperature, logit_softcap, logit_scale, chunk_tokens, memory_budget: As for
            `streaming_fipo_loss`.

    Returns:
        Log-probs and entropies like `targets`, in float32, or float64 for float64 inputs; 0 outside `mask`.

    Raises:
        InvalidInputError, InvalidParameterError: As for `streaming_fipo_loss`.
    """
    _check_tensors(hidden, lm_head_weight, bias, targets, mask)
    head = Head(hidden, lm_head_weight, bias, temperature, logit_softcap, logit_scale)
    where = mask.nonzero(as_tuple=True)
    logps, entropy = torch.zeros(2, *mask.shape, dtype=head.dtype, device=hidden.device)
    step = _chunk_tokens(head, chunk_tokens, memory_budget)
    for start in range(0, len(where[0]), step):
        here = tuple(index[start : start + step] for index in where)
        logps[here], entropy[here] = head.score(hidden[here], targets[here])
    return logps, entropy


class _WithGradients(torch.autograd.Function):
    """Runs the walk in `forward`, and hands out in `backward` what it found."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, walk: ReversePass, needed: list[bool]
    ) -> Tensor:
        loss, ctx.gradients = walk.run(needed)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The streaming loss went backward twice, but its gradients exist once; recompute it.")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if x is None else x.mul_(grad).to(dtype) for x, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return (*scaled, None, None)


def _boundaries(loss_mask: Tensor, cu_seqlens: Tensor | None) -> list[int]:
    if cu_seqlens is not None:
        return cu_seqlens.tolist()
    rows, length = loss_mask.shape
    return [row * length for row in range(rows + 1)]


def _default_budget(head: Head) -> int:
    """On CPUs an eighth of the head's gradient, where that is more: smaller chunks spend their time adding to it."""
    if head.weight.device.type != "cpu":
        return ACCELERATOR_BUDGET
    return max(CPU_BUDGET, head.weight.numel() * head.dtype.itemsize // 8)


def _chunk_tokens(head: Head, chunk_tokens: int | None, memory_budget: int | None) -> int:
    if chunk_tokens is None:
        if memory_budget is None:
            memory_budget = _default_budget(head)
        chunk_tokens = memory_budget // head.bytes_per_token
        if chunk_tokens < 1:
            raise InvalidParameterError(
                f"memory_budget is {memory_budget} bytes, but one token's logits take {head.bytes_per_token}; raise it."
            )
    if chunk_tokens < 1:
        raise InvalidParameterError(f"chunk_tokens is {chunk_tokens}, but must be at least 1.")
    return chunk_tokens


def _check_tensors(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    loss_mask: Tensor,
) -> None:
    """Shapes, dtypes, devices and ids of what the head sees."""
    if weight.dim() != 2 or hidden.dim() not in (2, 3) or hidden.shape[-1] != weight.shape[1]:
        raise InvalidInputError(
            f"hidden has shape {tuple(hidden.shape)} and lm_head_weight {tuple(weight.shape)}, but they must be "
            "(B, T, H) or (N, H), and (V, H); pass the last hidden states and the head's own weight."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InvalidInputError(f"bias has shape {tuple(bias.shape)}, but must have ({len(weight)},), one a token id.")
    for name, tensor in {"targets": targets, "loss_mask": loss_mask}.items():
        if tensor.shape != hidden.shape[:-1]:
            raise InvalidInputError(
                f"{name} has shape {tuple(tensor.shape)}, but hidden has {tuple(hidden.shape)}; pass one id and one "
                "mask entry a hidden state."
            )
    tensors = {"hidden": hidden, "lm_head_weight": weight, "targets": targets, "loss_mask": loss_mask}
    for name, tensor in tensors.items():
        if tensor.device != weight.device:
            raise InvalidInputError(
                f"{name} is on {tensor.device}, but lm_head_weight is on {weight.device}; move them to one device."
            )
        if tensor.is_floating_point() != (name in ("hidden", "lm_head_weight")) and name != "loss_mask":
            kind = "integer ids" if name == "targets" else "floating point"
            raise InvalidInputError(f"{name} has dtype {tensor.dtype}, but must be {kind}; convert it.")
    ids = targets[loss_mask.bool()]
    if ids.numel() and not (ids.min() >= 0 and ids.max() < len(weight)):
        raise InvalidInputError(
            f"A trained target is {int(ids.min() if ids.min() < 0 else ids.max())}, but the head knows ids from 0 to "
            f"{len(weight) - 1}; mask that token out or pass the whole head."
        )


def _check_batch(batch: TokenBatch, beta: float) -> None:
    if beta and batch.ref_logps is None:
        raise InvalidInputError(f"beta is {beta}, but ref_logps is None; pass the reference policy's log-probs.")
    for name in ("ref_logps", "importance_weights"):
        tensor = getattr(batch, name)
        if tensor is not None and tensor.shape != batch.loss_mask.shape:
            raise InvalidInputError(
                f"{name} has shape {tuple(tensor.shape)}, but loss_mask has {tuple(batch.loss_mask.shape)}; give both "
                "the same shape."
            )

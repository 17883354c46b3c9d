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

from fipo.core.chunks import cut
from fipo.core.lm_head import ChunkedHead, LMHead
from fipo.core.loss import FIPOOutput
from fipo.core.objective import Objective, TokenBatch
from fipo.core.reverse_pass import ReversePass
from fipo.errors import InvalidInputError, InvalidParameterError
from fipo.params import FIPOParams

CPU_BUDGET = 64 << 20  # 341 tokens × 49152: enough for products at full speed
BFLOAT16_TOKENS = 1024  # on CPUs that compute in it; docs/performance.md
# A chunk of C tokens adds to the head's gradient once: 8 bytes an element in float32, against 2 · C operations. At 700
# TFLOPS and 3.35 TB/s, an H100's, the operations take 2.4 times as long with 2,048 tokens. Not measured.
ACCELERATOR_TOKENS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class StreamingOutput:
    """The result of `streaming_loss`. Its per-token tensors are (B, T), or (N,) packed; only `loss` has a gradient."""

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
    temperature: float = 1.0,
    denominator: float | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
) -> StreamingOutput:
    """The mean of `fipo_loss` over the kept tokens, from hidden states in one reverse pass.

    `streaming_loss` knows more: a bias, a softcap, a KL term, an entropy bonus, importance weights.

    Args:
        hidden: (B, T, H) last hidden states, of which `hidden[:, t]` predicts `targets[:, t]`; or (N, H) packed with
            `cu_seqlens`. float16, bfloat16, float32 or float64. Differentiable.
        lm_head_weight: (V, H); the embeddings' weight where they are tied. Differentiable; frozen, it costs nothing.
        targets: (B, T) or (N,) integer ids of the sampled tokens; anything outside the loss mask.
        old_logps, advantages, loss_mask, params, epsilon_low, epsilon_high, cu_seqlens: As for `fipo_loss`.
        temperature: Divides the logits.
        denominator: Divides the sum: a number, or one a sequence or token like `advantages`. By default the number of
            kept tokens.
        chunk_tokens, memory_budget: As for `streaming_loss`.

    Returns, Raises:
        As `streaming_loss`.
    """
    batch = TokenBatch(old_logps=old_logps, advantages=advantages, loss_mask=loss_mask, denominator=denominator)
    return streaming_loss(
        hidden,
        LMHead(lm_head_weight, temperature=temperature),
        targets,
        batch,
        Objective(params=params, epsilon_low=epsilon_low, epsilon_high=epsilon_high),
        cu_seqlens=cu_seqlens,
        chunk_tokens=chunk_tokens,
        memory_budget=memory_budget,
    )


def streaming_loss(
    hidden: Tensor,
    head: LMHead,
    targets: Tensor,
    batch: TokenBatch,
    objective: Objective,
    *,
    cu_seqlens: Tensor | None = None,
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
) -> StreamingOutput:
    """The objective of hidden states in one reverse pass; see the module's docstring.

    Equals `Objective.loss` on log-probs of `softcap(scale · (hidden @ weightᵀ + bias)) / temperature`, in values and in
    all gradients. Only trained tokens are projected. Gradients are computed along with the loss; `backward` only scales
    them, and works once.

    Args:
        hidden, targets: As for `streaming_fipo_loss`.
        head: Its weight and bias are differentiable; frozen, they cost nothing.
        batch: See TokenBatch.
        objective: See Objective.
        cu_seqlens: (S + 1,) integer boundaries of packed sequences, from 0 to N.
        chunk_tokens: Trained tokens in a chunk; by default as many as `memory_budget` holds.
        memory_budget: Bytes for a chunk's logits; by default 64 MiB or an eighth of the head's gradient on a CPU (the
            logits of 1,024 tokens in bfloat16, where that is fast), the logits of 2,048 tokens elsewhere. Peak memory
            is about this and the gradients, whatever B, T and V.

    Returns:
        A StreamingOutput, in float32, or float64 where an input is.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit, a trained target lies outside the vocabulary, or the
            objective has a KL term and the batch no `ref_logps`.
        InvalidParameterError: A number is out of range, or the budget does not hold one token.
    """
    _check_tensors(hidden, head.weight, targets, batch.loss_mask, "loss_mask")
    chunked = ChunkedHead(head, hidden.dtype)
    size = _chunk_tokens(chunked, chunk_tokens, memory_budget)
    batch = batch.spread(chunked.dtype, cu_seqlens)
    learns = batch.advantages != 0  # a group of equal rewards needs no gradient
    chunks = cut(batch.loss_mask, targets, len(head.weight), size, cu_seqlens=cu_seqlens, learns=learns)
    inputs = (hidden, head.weight, head.bias)
    reverse_pass = ReversePass(chunked, hidden.detach(), targets, batch, objective, chunks)
    walk = reverse_pass.run([torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs])
    loss = _WithGradients.apply(*inputs, walk.loss, walk.gradients)
    shape = batch.loss_mask.shape
    per_position = {f.name: getattr(walk.out, f.name).view(shape) for f in fields(FIPOOutput) if f.name != "dropped"}
    tokens = FIPOOutput(**per_position, dropped=walk.out.dropped)
    return StreamingOutput(loss, tokens, walk.logps.view(shape), walk.entropy.view(shape))


@torch.no_grad()
def streaming_logps(
    hidden: Tensor,
    head: LMHead | Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and entropies in nats, chunk by chunk, without gradient.

    The arithmetic is that of `streaming_loss`, so log-ratios of an unchanged policy are 0, up to the rounding of
    float32 products of other shapes.

    Args:
        hidden, targets: (B, T, H) and (B, T), or (N, H) and (N,).
        head: The head, or its weight alone.
        mask: Like `targets`, boolean or 0/1: where log-probs are wanted.
        chunk_tokens, memory_budget: As for `streaming_loss`.

    Returns:
        Log-probs and entropies like `targets`, in float32, or float64 for float64 inputs; 0 outside `mask`.

    Raises:
        InvalidInputError, InvalidParameterError: As for `streaming_loss`.
    """
    head = LMHead(head) if isinstance(head, Tensor) else head
    _check_tensors(hidden, head.weight, targets, mask, "mask")
    chunked = ChunkedHead(head, hidden.dtype)
    logps, entropy = torch.zeros(2, *mask.shape, dtype=chunked.dtype, device=hidden.device)
    size = _chunk_tokens(chunked, chunk_tokens, memory_budget)
    chunks = cut(mask.bool(), targets, len(head.weight), size)
    for chunk in chunks.right_to_left:
        here = tuple(index[chunk.trained] for index in chunks.where)
        logps[here], entropy[here] = chunked.score(hidden[here], targets[here])
    return logps, entropy


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known already: `backward` hands them out."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: Tensor, gradients: list[Tensor | None]
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.unless_nan = torch.where(loss.isfinite(), 1, torch.nan)  # chunks without advantages were left out
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("The streaming loss went backward twice, but its gradients exist once; recompute it.")
        gradients, ctx.gradients = ctx.gradients, None
        grad = grad * ctx.unless_nan
        scaled = [None if x is None else x.mul_(grad).to(dtype) for x, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return (*scaled, None, None)


def _default_budget(head: ChunkedHead) -> int:
    """On CPUs an eighth of the head's gradient, where that is more: smaller chunks spend their time adding to it."""
    if head.weight.device.type != "cpu":
        return ACCELERATOR_TOKENS * head.bytes_per_token
    if head.native_gradients:
        return BFLOAT16_TOKENS * head.bytes_per_token
    return max(CPU_BUDGET, head.weight.numel() * head.dtype.itemsize // 8)


def _chunk_tokens(head: ChunkedHead, chunk_tokens: int | None, memory_budget: int | None) -> int:
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


def _check_tensors(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, mask_name: str) -> None:
    """Shapes, dtypes and devices of what the head sees."""
    if weight.dim() != 2 or hidden.dim() not in (2, 3) or hidden.shape[-1] != weight.shape[1]:
        raise InvalidInputError(
            f"hidden has shape {tuple(hidden.shape)} and lm_head_weight {tuple(weight.shape)}, but they must be "
            "(B, T, H) or (N, H), and (V, H); pass the last hidden states and the head's own weight."
        )
    for name, tensor in {"targets": targets, mask_name: mask}.items():
        if tensor.shape != hidden.shape[:-1]:
            raise InvalidInputError(
                f"{name} has shape {tuple(tensor.shape)}, but hidden has {tuple(hidden.shape)}; pass one id and one "
                "mask entry a hidden state."
            )
    for name, tensor in {"hidden": hidden, "targets": targets, mask_name: mask}.items():
        if tensor.device != weight.device:
            raise InvalidInputError(
                f"{name} is on {tensor.device}, but lm_head_weight is on {weight.device}; move them to one device."
            )
    kinds = {"hidden": (hidden, True), "lm_head_weight": (weight, True), "targets": (targets, False)}
    for name, (tensor, floating) in kinds.items():
        if tensor.is_floating_point() != floating:
            kind = "floating point" if floating else "integer ids"
            raise InvalidInputError(f"{name} has dtype {tensor.dtype}, but must be {kind}; convert it.")

"""A language model's head without logits: log-probs and entropies of sampled tokens, differentiable, chunk by chunk.

    logits = softcap(scale · (hidden @ weightᵀ + bias)) / temperature,   softcap(x) = c · tanh(x / c)

Logits are float32 (float64 for float64 inputs) whatever the inputs: bfloat16 and float16 inputs are multiplied with
float32 accumulation and nothing is rounded in between. A chunk's logits are kept for the backward as long as a memory
budget lasts: three matrix products, as plain logits need. Beyond it they are computed again, a fourth. Where weight and
bias are frozen (LoRA), the forward forms d log p / d hidden while it has the logits: two products.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fipo.core.precision import fast_bfloat16, multiplies_into_float32, processor_has_bfloat16
from fipo.errors import InvalidInputError, InvalidParameterError

CPU_BUDGET = 512 << 20
CPU_CHUNK_BYTES = 64 << 20  # 341 tokens × 49152: enough for products at full speed
BFLOAT16_TOKENS = 1024  # of a chunk, on CPUs that compute in it; docs/performance.md
# A chunk of C tokens adds to the head's gradient once: 8 bytes an element in float32, against 2 · C operations. At 700
# TFLOPS and 3.35 TB/s, an H100's, the operations take 2.4 times as long with 2,048 tokens. Not measured.
ACCELERATOR_TOKENS = 2048
ACCELERATOR_SHARE = 16  # the budget is one part in so many of a GPU's memory. Not measured
OTHER_BUDGET = 1 << 30  # where the size of that memory cannot be asked
FUSED_ON = ("cuda", "xpu")  # where the passes over a chunk's logits are compiled, by Triton
CACHE_BYTES = 4 << 20  # elsewhere they work on rows that stay in a processor's cache
ROW_BLOCK_BYTES = 128 << 20  # or, on other accelerators, on so many that their copies stay small
WEIGHT_TILE_BYTES = 16 << 20  # converted copies of the weight are made in tiles of at most this


def head_logps(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    loss_mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    memory_budget: int | None = None,
    weight_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and entropies of the policy, by the module's formula. Trained tokens alone are scored.

    Args:
        hidden: (B, T, H) last hidden states, of which `hidden[:, t]` predicts `targets[:, t]`; or (N, H). float16,
            bfloat16, float32 or float64. Differentiable.
        lm_head_weight: (V, H); the embeddings' weight where they are tied. Differentiable; frozen, it costs nothing.
        targets: (B, T) or (N,) integer ids of the sampled tokens; anything outside the loss mask.
        loss_mask: Like `targets`, boolean or 0/1; true = scored.
        bias: (V,) of the head. Differentiable.
        temperature, softcap, scale: Of the formula. Not differentiable; softcap None: there is none.
        memory_budget: Bytes of logits to keep for the backward. By default 512 MiB on a CPU, elsewhere a sixteenth of
            the device's memory. Peak memory is this, one chunk's logits and the gradients, whatever B, T and V.
        weight_context: Makes a context in which weight and bias are whole, where they are sharded (DeepSpeed ZeRO-3);
            entered around every use of them, in the backward too.

    Returns:
        Log-probs and entropies in nats, like `targets`, in float32, or float64 where an input is; 0 outside the mask.

    Raises:
        InvalidInputError: Shapes, dtypes or devices do not fit, or a scored target lies outside the vocabulary.
        InvalidParameterError: The temperature or the softcap is not above 0, or the budget is below 0.
    """
    if not temperature > 0 or (softcap is not None and not softcap > 0):
        raise InvalidParameterError(
            f"temperature is {temperature} and softcap is {softcap}, but both must be above 0; change them."
        )
    budget = _default_budget(hidden.device) if memory_budget is None else memory_budget
    if budget < 0:
        raise InvalidParameterError(f"memory_budget is {memory_budget}, but must be 0 or more bytes; raise it.")
    with weight_context():
        _check_tensors(hidden, lm_head_weight, bias, targets, loss_mask)
        scored = _scored_positions(loss_mask.bool(), targets, len(lm_head_weight))
    input_dtype, device = torch.promote_types(hidden.dtype, lm_head_weight.dtype), hidden.device.type
    if torch.is_autocast_enabled(device) and input_dtype != torch.float64:
        input_dtype = torch.get_autocast_dtype(device)
    how = input_dtype, {"temperature": temperature, "softcap": softcap, "scale": scale}
    states, ids = hidden.flatten(0, -2).index_select(0, scored), targets.flatten()[scored]
    found = _HeadLogps.apply(states, lm_head_weight, bias, ids, how, budget, weight_context)
    logps, entropy = (x.new_zeros(targets.numel()).index_put((scored,), x).view(targets.shape) for x in found)
    return logps, entropy


class _HeadLogps(torch.autograd.Function):
    """The walk over chunks of (K, H) states and their (K,) targets, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        how: tuple[torch.dtype, dict[str, float | None]],
        budget: int,
        weight_context: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        trains_states, *trains_head = ctx.needs_input_grad[:3]
        tokens, ctx.kept, ctx.slopes = len(targets), {}, None
        with weight_context():
            head = _Head(weight, bias, *how)
            logps, log_z, entropy = (states.new_empty(tokens, dtype=head.dtype) for _ in range(3))
            if trains_states and not any(trains_head):
                ctx.slopes = torch.empty_like(states, dtype=head.dtype)
            for chunk in head.chunks(tokens):
                keep = any(trains_head) and chunk.stop * head.bytes_of_a_token <= budget
                logits = head.logits(states[chunk], fresh=keep)
                found = zip(*head.by_rows(_statistics, logits, targets[chunk]), strict=True)
                logps[chunk], log_z[chunk], entropy[chunk] = map(torch.cat, found)
                if keep:
                    ctx.kept[chunk.start] = logits
                elif ctx.slopes is not None:
                    head.by_rows(_differentiate, logits, targets[chunk], log_z[chunk], torch.ones_like(log_z[chunk]))
                    head.gradients(logits, states[chunk], ctx.slopes[chunk], None, None)
        ctx.save_for_backward(states, weight, bias, targets, log_z, entropy)
        ctx.how, ctx.weight_context = how, weight_context
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        inputs, grad_logps = (states, weight, bias), torch.zeros_like(entropy) if grad_logps is None else grad_logps
        if ctx.slopes is not None and grad_entropy is None:
            return (ctx.slopes * grad_logps[:, None]).to(states.dtype), *6 * (None,)
        with ctx.weight_context():
            head = _Head(weight, bias, *ctx.how)
            wanted = zip(inputs, ctx.needs_input_grad, strict=False)
            of_states, *of_head = [torch.zeros_like(x, dtype=head.dtype) if yes else None for x, yes in wanted]
            for chunk in head.chunks(len(targets)):
                by_logps, by_entropy = grad_logps[chunk], None if grad_entropy is None else grad_entropy[chunk]
                logits = ctx.kept.pop(chunk.start, None)  # a second backward computes them again
                if head.device.type == "cpu" and by_entropy is None and not by_logps.any():
                    continue  # groups of equal rewards; an accelerator would have to be waited for
                logits = head.logits(states[chunk]) if logits is None else logits
                columns = targets[chunk], log_z[chunk], by_logps, entropy[chunk], by_entropy
                head.by_rows(_differentiate, logits, *columns)
                head.gradients(logits, states[chunk], None if of_states is None else of_states[chunk], *of_head)
        grads = zip(inputs, (of_states, *of_head), strict=True)
        return *(None if grad is None else grad.to(x.dtype) for x, grad in grads), *4 * (None,)


class _Head:
    """Chunks of one head: their logits, what is read off them, and the gradients that they give. No autograd."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, input_dtype: torch.dtype, options: dict[str, float | None]
    ) -> None:
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._input_dtype, self._options = input_dtype, options
        self.device, (self._vocabulary, self._width) = weight.device, weight.shape
        self.dtype = torch.promote_types(input_dtype, torch.float32)
        # Not float16: the gradient of the logits has been divided by the batch's tokens, which is too small for it.
        halves = input_dtype == torch.bfloat16 and multiplies_into_float32(self.device)
        self._operand_dtype = input_dtype if halves else self.dtype
        plain = weight.dtype == input_dtype == torch.bfloat16
        self._native_gradients = plain and self.device.type == "cpu" and processor_has_bfloat16()
        # Float32 weights under bfloat16 autocast are copied once for all chunks, in half their bytes.
        narrower = self._operand_dtype.itemsize < weight.dtype.itemsize
        as_it_is = weight.dtype == input_dtype == self._operand_dtype
        self._whole = self._operand(self._weight) if narrower or as_it_is else None
        self._buffer = torch.empty(0, self._vocabulary, dtype=self.dtype, device=self.device)
        self.bytes_of_a_token = self._vocabulary * self.dtype.itemsize

    def chunks(self, tokens: int) -> Iterator[slice]:
        """How `tokens` are walked. On CPUs a chunk's logits take an eighth of the head's gradient, if that is more than
        64 MiB: smaller chunks spend their time adding to it."""
        size = ACCELERATOR_TOKENS
        if self.device.type == "cpu":
            large = max(CPU_CHUNK_BYTES // self.bytes_of_a_token, self._width // 8, 1)
            size = BFLOAT16_TOKENS if self._native_gradients else large
        return _slices(tokens, size)

    def logits(self, states: Tensor, *, fresh: bool = False) -> Tensor:
        """(C, V) after `states` (C, H), in a buffer that the next call uses again unless it is `fresh`."""
        logits = self._buffer[: len(states)]
        if fresh or len(logits) < len(states):  # the first chunk is the largest
            logits = self._buffer.new_empty(len(states), self._vocabulary)
            self._buffer = self._buffer if fresh else logits
        operand = self._operand(states)
        for tile, factor in self._tiles():
            self._product(logits[:, tile], operand, factor.t(), accumulate=False)
            if self._bias is not None:
                logits[:, tile] += self._bias[tile]
        self.by_rows(_transform, logits)
        return logits

    def gradients(
        self, grad: Tensor, states: Tensor, of_states: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        """Puts what the products' gradient (C, V) gives the `states` (C, H) into the first; adds to weight and bias."""
        if bias is not None:
            bias += grad.sum(0)
        if self._native_gradients:  # bfloat16 factors and results, as both are in the end; chunks add up in float32
            grad = grad.to(torch.bfloat16)
            if weight is not None:
                weight += grad.t() @ states
            if of_states is not None:
                of_states.copy_(grad @ self._weight)
            return
        operand = self._operand(states)
        for tile, factor in self._tiles():
            slopes = grad[:, tile].to(self._operand_dtype)
            if of_states is not None:
                self._product(of_states, slopes, factor, accumulate=tile.start > 0)
            if weight is not None:
                self._product(weight[tile], slopes.t(), operand, accumulate=True)

    def _operand(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._input_dtype).to(self._operand_dtype)

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """The weight as it is multiplied, whole or, where it has to be widened, as many rows as a tile's bytes hold."""
        if self._whole is not None:
            return iter([(slice(0, self._vocabulary), self._whole)])
        rows = max(1, WEIGHT_TILE_BYTES // (self._width * self._operand_dtype.itemsize))
        return ((tile, self._operand(self._weight[tile])) for tile in _slices(self._vocabulary, rows))

    def by_rows(self, function: Callable[..., Any], logits: Tensor, *columns: Tensor | None) -> list[Any]:
        """What `function` gives for every block of rows: compiled into one pass over all where that can be done."""
        fused = self.device.type in FUSED_ON
        block = CACHE_BYTES if self.device.type == "cpu" else ROW_BLOCK_BYTES
        rows = max(1, len(logits) if fused else block // self.bytes_of_a_token)
        function = _fused(function) if fused else function
        parts = ((logits[b], *(c if c is None else c[b] for c in columns)) for b in _slices(len(logits), rows))
        return [function(*part, **self._options) for part in parts]

    def _product(self, out: Tensor, a: Tensor, b: Tensor, *, accumulate: bool) -> None:
        """out (+)= a @ b, with the accumulation and the result in out's dtype."""
        how: dict[str, Any] = {} if a.dtype == out.dtype else {"out_dtype": out.dtype}
        with fast_bfloat16(self._input_dtype == torch.bfloat16 and a.device.type == "cpu"):
            torch.addmm(out, a, b, beta=int(accumulate), out=out, **how)


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


_fused = cache(partial(torch.compile, dynamic=True, fullgraph=True))


def _transform(products: Tensor, *, temperature: float, softcap: float | None, scale: float) -> None:
    """From products to logits, in place."""
    if softcap is not None:
        products.mul_(scale / softcap).tanh_().mul_(softcap / temperature)
    elif scale != temperature:
        products.mul_(scale / temperature)


def _statistics(logits: Tensor, targets: Tensor, **_: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the targets, log Σ exp and entropies of a few rows."""
    top = logits.amax(-1, keepdim=True)
    p = (logits - top).exp_()
    total = p.sum(-1)
    log_z = total.log().add_(top[:, 0])
    entropy = log_z - p.mul_(logits).sum(-1).div_(total)
    return logits.gather(1, targets[:, None])[:, 0] - log_z, log_z, entropy


def _differentiate(
    logits: Tensor,
    targets: Tensor,
    log_z: Tensor,
    grad_logps: Tensor,
    entropy: Tensor | None = None,
    grad_entropy: Tensor | None = None,
    *,
    temperature: float,
    softcap: float | None,
    scale: float,
) -> None:
    """Overwrites a few rows of logits with the loss's gradient with respect to the products.

    d log p_target / dz_j = 1[j = target] − p_j,   d entropy / dz_j = −p_j · (log p_j + entropy)
    """
    slope = None if softcap is None else (logits * (temperature / softcap)).square_().neg_().add_(1)  # 1 − tanh²
    log_p = logits.sub_(log_z[:, None])
    if entropy is None or grad_entropy is None:
        log_p.exp_().mul_(-grad_logps[:, None])
    else:
        p = log_p.exp()
        log_p.add_(entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad_logps[:, None])
        log_p.mul_(p).neg_()
    logits.scatter_add_(1, targets[:, None], grad_logps[:, None])
    if slope is not None:
        logits.mul_(slope)
    if scale != temperature:
        logits.mul_(scale / temperature)


def _scored_positions(mask: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
    """Indices (K,) of the K scored tokens, flattened. An accelerator is waited for once. Raises an InvalidInputError
    where a scored target lies outside the vocabulary."""
    row = mask.reshape(-1)
    ids = pad(torch.where(mask, targets, 0).reshape(-1), (0, 1))
    total, least, greatest = torch.stack([row.sum(), ids.min(), ids.max()]).tolist()
    if least < 0 or greatest >= vocabulary:
        raise InvalidInputError(
            f"A trained target is {least if least < 0 else greatest}, but the head knows ids from 0 to "
            f"{vocabulary - 1}; mask that token out or pass the whole head."
        )
    positions = torch.arange(len(row), device=row.device)
    place = torch.where(row, row.cumsum(0) - 1, len(row))  # all that is not scored goes to one entry more
    return positions.new_empty(len(row) + 1).scatter_(0, place, positions)[:total]


def _default_budget(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // ACCELERATOR_SHARE
    return CPU_BUDGET if device.type == "cpu" else OTHER_BUDGET


def _check_tensors(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, mask: Tensor) -> None:
    """Shapes, dtypes and devices of what the head sees."""
    if weight.dim() != 2 or hidden.dim() not in (2, 3) or hidden.shape[-1] != weight.shape[1]:
        raise InvalidInputError(
            f"hidden has shape {tuple(hidden.shape)} and lm_head_weight {tuple(weight.shape)}, but they must be "
            "(B, T, H) or (N, H), and (V, H); pass the last hidden states and the head's own weight."
        )
    tokens = hidden.shape[:-1]
    for name, tensor, shape in (
        ("hidden", hidden, hidden.shape),
        ("lm_head_weight", weight, weight.shape),
        ("targets", targets, tokens),
        ("loss_mask", mask, tokens),
        ("bias", weight[:, 0] if bias is None else bias, weight.shape[:1]),
    ):
        if tensor.shape != shape:
            raise InvalidInputError(
                f"{name} has shape {tuple(tensor.shape)}, but must have {tuple(shape)}; pass one entry a hidden state, "
                "and the head's own bias."
            )
        if tensor.device != weight.device:
            raise InvalidInputError(
                f"{name} is on {tensor.device}, but lm_head_weight is on {weight.device}; move them to one device."
            )
        if name != "loss_mask" and tensor.is_floating_point() != (name != "targets"):
            kind = "integer ids" if name == "targets" else "floating point"
            raise InvalidInputError(f"{name} has dtype {tensor.dtype}, but must be {kind}; convert it.")

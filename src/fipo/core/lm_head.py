"""A language model's head on a chunk of tokens: log-probs, entropies and all gradients from one buffer of logits.

    logits = softcap(scale · (hidden @ weightᵀ + bias)) / temperature,   softcap(x) = c · tanh(x / c)

Logits are float32 (float64 for float64 inputs) whatever the inputs: bfloat16 and float16 inputs are multiplied with
float32 accumulation and nothing is rounded in between. The buffer is reused from chunk to chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fipo.core.precision import fast_bfloat16, multiplies_into_float32, processor_has_bfloat16
from fipo.errors import InvalidInputError, InvalidParameterError

CACHE_BYTES = 4 << 20  # elementwise passes over the logits work on rows that stay in a processor's cache
ROW_BLOCK_BYTES = 128 << 20  # and on accelerators on so many that their copies stay small
WEIGHT_TILE_BYTES = 16 << 20  # converted copies of the weight are made in tiles of at most this


@dataclass(frozen=True, slots=True, eq=False)
class LMHead:
    """What lies between the last hidden states and the log-probs of a language model.

    Raises:
        InvalidInputError: The bias does not fit the weight.
        InvalidParameterError: The temperature or the softcap is not above 0.
    """

    weight: Tensor  # (V, H); the embeddings' weight where they are tied. Differentiable
    bias: Tensor | None = None  # (V,). Differentiable
    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or (self.softcap is not None and not self.softcap > 0):
            raise InvalidParameterError(
                f"temperature is {self.temperature} and softcap is {self.softcap}, but both must be above 0; change "
                "them."
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise InvalidInputError(
                f"bias has shape {tuple(self.bias.shape)}, but must have ({len(self.weight)},), one a token id; pass "
                "the head's own."
            )


class ChunkedHead:
    """A head applied to one chunk after the other: `score` fills the buffer, `backward` uses it up. No autograd."""

    def __init__(self, head: LMHead, dtype: torch.dtype) -> None:
        """`dtype` is that of the hidden states. Under autocast products take autocast's, else that of both inputs."""
        self.weight = head.weight.detach()
        self.bias = None if head.bias is None else head.bias.detach()
        self.temperature, self.softcap, self.scale = head.temperature, head.softcap, head.scale
        device = self.weight.device.type
        self._input_dtype = torch.promote_types(dtype, self.weight.dtype)
        if torch.is_autocast_enabled(device) and self._input_dtype != torch.float64:
            self._input_dtype = torch.get_autocast_dtype(device)
        self.dtype = torch.promote_types(self._input_dtype, torch.float32)
        # Not float16: the gradient of the logits has been divided by the batch's tokens, which is too small for it.
        halves = self._input_dtype == torch.bfloat16 and multiplies_into_float32(self.weight.device)
        self._operand_dtype = self._input_dtype if halves else self.dtype
        plain = self.weight.dtype == self._input_dtype == torch.bfloat16
        self.native_gradients = plain and device == "cpu" and processor_has_bfloat16()
        self._buffer = torch.empty(0, len(self.weight), dtype=self.dtype, device=self.weight.device)
        self._whole = self._whole_weight()

    @property
    def bytes_per_token(self) -> int:
        return len(self.weight) * self.dtype.itemsize

    def score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs of `targets` (C,) and entropies (C,) after `hidden` (C, H); without gradient."""
        self._hidden, self._targets = hidden, targets
        if len(hidden) > len(self._buffer):  # the first chunk is the largest
            self._buffer = self._buffer.new_empty(len(hidden), len(self.weight))
        logits = self._buffer[: len(hidden)]
        operand = self._operand(hidden)
        for tile in self._tiles():
            self._product(logits[:, tile], operand, self._factor(tile).t(), accumulate=False)
            if self.bias is not None:
                logits[:, tile] += self.bias[tile]
        logps, self._log_z, self._entropy = (torch.empty_like(logits[:, 0]) for _ in range(3))
        for rows in self._row_blocks(logits):
            z = self._transform(logits[rows])
            top = z.amax(-1, keepdim=True)
            p = (z - top).exp_()
            total = p.sum(-1)
            self._log_z[rows] = total.log().add_(top[:, 0])
            self._entropy[rows] = self._log_z[rows] - p.mul_(z).sum(-1).div_(total)
            logps[rows] = z.gather(1, targets[rows, None])[:, 0] - self._log_z[rows]
        return logps, self._entropy

    def backward(
        self,
        grad_logps: Tensor,
        grad_entropy: Tensor | None,
        *,
        hidden: bool = True,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor | None:
        """Gradients of the chunk scored last, from those of its log-probs (C,) and entropies (C,).

        Adds the head's to `weight` (V, H) and `bias` (V,) where given, and returns the hidden states' (C, H) if asked.
        """
        grad = self._buffer[: len(grad_logps)]
        for rows in self._row_blocks(grad):
            self._differentiate(grad[rows], rows, grad_logps, grad_entropy)
        if bias is not None:
            bias += grad.sum(0)
        if self.native_gradients:
            return self._native_products(grad.to(torch.bfloat16), hidden, weight)
        grad_hidden = torch.empty_like(self._hidden, dtype=self.dtype) if hidden else None
        self._add_products(grad, grad_hidden, weight)
        return grad_hidden

    def _add_products(self, grad: Tensor, grad_hidden: Tensor | None, weight: Tensor | None) -> None:
        """Fills the hidden states' gradient and adds the weight's, as far as they are given."""
        if grad_hidden is None and weight is None:
            return
        states = self._operand(self._hidden)
        for tile in self._tiles():
            slopes = grad[:, tile].to(self._operand_dtype)
            if grad_hidden is not None:
                self._product(grad_hidden, slopes, self._factor(tile), accumulate=tile.start > 0)
            if weight is not None:
                self._product(weight[tile], slopes.t(), states, accumulate=True)

    def _native_products(self, grad: Tensor, hidden: bool, weight: Tensor | None) -> Tensor | None:
        """Of bfloat16 factors with bfloat16 results, as both gradients are in the end; chunks add up in float32."""
        if weight is not None:
            weight += grad.t() @ self._hidden
        return (grad @ self.weight).to(self.dtype) if hidden else None

    def _transform(self, logits: Tensor) -> Tensor:
        """From products to logits, in place."""
        if self.softcap is not None:
            return logits.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)
        factor = self.scale / self.temperature
        return logits if factor == 1 else logits.mul_(factor)

    def _differentiate(self, z: Tensor, rows: slice, grad_logps: Tensor, grad_entropy: Tensor | None) -> None:
        """Overwrites a block of logits with the loss's gradient with respect to the products.

        d log p_target / dz_j = 1[j = target] − p_j,   d entropy / dz_j = −p_j · (log p_j + entropy)
        """
        slope = None
        if self.softcap is not None:  # 1 − tanh²
            slope = (z * (self.temperature / self.softcap)).square_().neg_().add_(1)
        log_p = z.sub_(self._log_z[rows, None])
        if grad_entropy is None:
            log_p.exp_().mul_(-grad_logps[rows, None])
        else:
            p = log_p.exp()
            log_p.add_(self._entropy[rows, None]).mul_(grad_entropy[rows, None]).add_(grad_logps[rows, None])
            log_p.mul_(p).neg_()
        z.scatter_add_(1, self._targets[rows, None], grad_logps[rows, None])
        factor = self.scale / self.temperature
        if slope is not None:
            z.mul_(slope)
        if factor != 1:
            z.mul_(factor)

    def _operand(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._input_dtype).to(self._operand_dtype)

    def _whole_weight(self) -> Tensor | None:
        """The weight where it is multiplied as it is; or a copy, once for all chunks, where that is narrower.

        Float32 weights under bfloat16 autocast are such: the copy takes half their bytes. CPUs convert tiles instead.
        """
        if self.weight.dtype == self._input_dtype == self._operand_dtype:
            return self.weight
        narrower = self._operand_dtype.itemsize < self.weight.dtype.itemsize
        return self._operand(self.weight) if narrower else None

    def _tiles(self) -> Iterator[slice]:
        """All rows of the weight; as many at once as are to be converted."""
        vocabulary, width = self.weight.shape
        rows = vocabulary
        if self._whole is None:
            rows = max(1, WEIGHT_TILE_BYTES // (width * self._operand_dtype.itemsize))
        for start in range(0, vocabulary, rows):
            yield slice(start, min(start + rows, vocabulary))

    def _factor(self, tile: slice) -> Tensor:
        return self._operand(self.weight[tile]) if self._whole is None else self._whole[tile]

    def _row_blocks(self, logits: Tensor) -> Iterator[slice]:
        tokens, vocabulary = logits.shape
        block = CACHE_BYTES if logits.device.type == "cpu" else ROW_BLOCK_BYTES
        rows = max(1, block // (vocabulary * logits.itemsize))
        for start in range(0, tokens, rows):
            yield slice(start, min(start + rows, tokens))

    def _product(self, out: Tensor, a: Tensor, b: Tensor, *, accumulate: bool) -> None:
        """out (+)= a @ b, with the accumulation and the result in out's dtype."""
        beta = 1 if accumulate else 0
        if a.dtype == out.dtype:
            with fast_bfloat16(self._input_dtype == torch.bfloat16 and a.device.type == "cpu"):
                torch.addmm(out, a, b, beta=beta, out=out)
        else:
            torch.addmm(out, a, b, beta=beta, out_dtype=out.dtype, out=out)

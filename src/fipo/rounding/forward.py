"""Log-probs of the same responses by the same weights, as forwards in different precisions compute them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fipo.core.precision import processor_has_bfloat16

ADAPTER = "lora_"  # in the names of weights that stay float32, as PEFT keeps them
LOGITS_BYTES = 1 << 30  # of the responses that are scored at once


@dataclass(frozen=True)
class Responses:
    """N sampled responses of at most T tokens behind prompts of at most P."""

    ids: Tensor  # (N, P + T) integer: prompts padded on the left, responses on the right
    attended: Tensor  # (N, P + T) bool: all but padding
    trained: Tensor  # (N, T) bool: the tokens of the responses

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> "Responses":
        return Responses(self.ids[rows], self.attended[rows], self.trained[rows])

    def to(self, device: torch.device) -> "Responses":
        return Responses(self.ids.to(device), self.attended.to(device), self.trained.to(device))


@dataclass(frozen=True)
class Forward:
    """A precision of weights and arithmetic. Adapters stay float32 in all of them."""

    dtype: torch.dtype
    weights_alone: bool = False  # float32 arithmetic of weights rounded to `dtype`: the true policy of an engine
    autocast: bool = False  # float32 weights and sums of layers, of which products alone are computed in `dtype`


def logps_of(
    model: Any, responses: Responses, forward: Forward, *, at_once: int | None = None
) -> tuple[Tensor, Tensor]:
    """(N, T) float32 log-probs at temperature 1 with float32 logits, and with logits rounded to `forward.dtype`.

    Args:
        model: A transformers model with float32 weights, adapters or none; it is left as it is.
        at_once: Responses in a batch, by default as many as LOGITS_BYTES allow; the rounding depends on it.
    """
    rounded = model
    if forward.dtype != torch.float32 and not forward.autocast:
        rounded = copy.deepcopy(model)
        for name, weight in rounded.named_parameters():
            if ADAPTER not in name:
                cast = weight.data.to(forward.dtype)
                weight.data = cast.float() if forward.weights_alone else cast
    found = []
    length, vocabulary = responses.trained.shape[1], len(model.get_input_embeddings().weight)
    at_once = at_once or max(LOGITS_BYTES // (4 * length * vocabulary), 1)
    with torch.no_grad(), _arithmetic(rounded, forward), _exact_logits(rounded):
        for start in range(0, len(responses), at_once):
            batch = responses[start : start + at_once]
            attended = batch.attended.long()
            logits = rounded(input_ids=batch.ids, attention_mask=attended, logits_to_keep=length + 1).logits[:, :-1]
            targets = batch.ids[:, -length:, None]
            exact = logits.log_softmax(-1).gather(-1, targets)[..., 0]
            found.append((exact, logits.to(forward.dtype).float().log_softmax(-1).gather(-1, targets)[..., 0]))
    exact, of_rounded_logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return exact, of_rounded_logits


@contextmanager
def _exact_logits(model: Any) -> Iterator[None]:
    """The head multiplies in float32 what it is given, so that its logits are not rounded."""
    head = model.get_output_embeddings()

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


@contextmanager
def _arithmetic(model: Any, forward: Forward) -> Iterator[None]:
    device, half = model.device.type, forward.dtype != torch.float32 and not forward.weights_alone
    autocast = torch.autocast(device, dtype=forward.dtype) if forward.autocast else nullcontext()
    slow = device == "cpu" and not (forward.dtype == torch.bfloat16 and processor_has_bfloat16())
    with autocast, _Float32Products() if half and slow else nullcontext():
        yield


PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


class _Float32Products(TorchDispatchMode):
    """For a processor without units for a precision: multiplies in float32 and rounds the result, as such units do."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in PRODUCTS or args[0].dtype == torch.float32:
            return function(*args, **(kwargs or {}))
        dtype = args[0].dtype
        args, kwargs = tree_map_only(Tensor, lambda x: x.float() if x.dtype == dtype else x, (args, kwargs or {}))
        found = function(*args, **kwargs)
        return tree_map_only(Tensor, lambda x: x.to(dtype) if x.dtype == torch.float32 else x, found)

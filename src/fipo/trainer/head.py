"""fipo's head inside a transformers model's own `forward`, so that DDP, FSDP and DeepSpeed see an ordinary call.

TRL gives the model a `forward(labels=…, fused_lm_head=True)` that knows softcaps, scales, mixtures of experts and
sharded heads, and scores with a kernel of its own. `add_head` lets it score with `head_logps` instead: while that
forward runs, the kernel's name in TRL's module stands for fipo's head.
"""

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer import utils

from fipo.core import head_logps
from fipo.errors import InvalidParameterError

PROBE_LENGTH = 4


def add_head(model: PreTrainedModel, memory_budget: int | None = None) -> None:
    """Patches `model.forward`, over which TRL's fused head lies already, with a `memory_budget` as of `head_logps`.
    Raises an InvalidParameterError where the head is no plain linear layer."""
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
        raise InvalidParameterError(
            f"The head of {type(model).__name__} is a {type(layer).__name__}, but log-probs need an nn.Linear with "
            "floating-point weights; leave the head out of adapters and quantisation."
        )
    trls, kernel = model.forward, types.SimpleNamespace(apply=functools.partial(_score, memory_budget))

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head"):
            return trls(*args, **kwargs)
        before = utils._ChunkedLogProbFunction, utils._use_triton
        # TRL hands over the labelled tokens alone where it has its Triton kernel, and so it shall here.
        utils._ChunkedLogProbFunction, utils._use_triton = kernel, lambda device: True
        try:
            return trls(*args, **kwargs)
        finally:
            utils._ChunkedLogProbFunction, utils._use_triton = before

    model.forward = types.MethodType(forward, model)
    # transformers slices the last token out of the prompts' states; torch answers with a copy of the weight per row
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def _score(
    memory_budget: int | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    chunk_size: int,
    softcap: float | None,
    scale: float,
    outputs: tuple[str, ...],
) -> tuple[Tensor, Tensor, None, None, None]:
    """`head_logps` with the arguments and results of TRL's ChunkedLogProbFunction, of which GRPO uses the first two."""
    whole = functools.partial(utils.maybe_gather_lm_head_ctx, weight, bias)  # under ZeRO-3, in the backward too
    options: Any = {"temperature": temperature, "softcap": softcap, "scale": scale}
    options |= {"bias": bias, "memory_budget": memory_budget, "weight_context": whole}
    return *head_logps(hidden, weight, targets, torch.ones_like(targets), **options), None, None, None


@torch.no_grad()
def check_head(model: PreTrainedModel, temperature: float) -> None:
    """Compares `head_logps` with the model's own logits on a few tokens, before the model is sharded; raises an
    InvalidParameterError where they differ by more than rounding explains."""
    ids = torch.arange(PROBE_LENGTH, device=model.device)[None]
    training = model.training
    model.eval()
    logits = model(input_ids=ids).logits[0, :-1].float() / temperature
    expected = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    error = (model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[0] - expected).abs().max()
    model.train(training)
    if not error <= 1e-3 + 4 * logits.abs().max() * torch.finfo(model.dtype).eps:
        raise InvalidParameterError(
            f"The logits of {type(model).__name__} give other log-probs than its head on its last hidden states (by "
            f"{error:.3g}), so something that TRL does not know lies between; take another model, or report this one."
        )

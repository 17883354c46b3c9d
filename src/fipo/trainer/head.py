"""fipo's head inside a transformers model's own `forward`, so that DDP, FSDP and DeepSpeed see an ordinary call.

TRL gives the model a `forward(labels=…, fused_lm_head=True)` that returns log-probs; `add_head` puts another one over
it, which computes them by `head_logps`.
"""

import functools
import types
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from fipo.core import head_logps
from fipo.errors import InvalidParameterError

IGNORED = -100  # the label of a token that is not scored
PROBE_LENGTH = 4


def add_head(
    model: PreTrainedModel, temperature: float, *, autocast: bool = True, memory_budget: int | None = None
) -> None:
    """Patches `model.forward`.

    Args:
        model: With a plain linear head; TRL's fused head may lie over its forward already.
        temperature: Divides the logits.
        autocast: False: the head multiplies in its weight's own dtype.
        memory_budget: As for `head_logps`.

    Raises:
        InvalidParameterError: The head is no plain linear layer.
    """
    _check_layer(model)
    plain_forward = model.forward
    softcap, scale = _logit_options(model.config.get_text_config())
    options = {"temperature": temperature, "softcap": softcap, "scale": scale, "memory_budget": memory_budget}

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        states = self.base_model(*args, **{**kwargs, "use_cache": False})
        layer = self.get_output_embeddings()  # looked up on each call: FSDP and PEFT replace it
        hidden, labels = (x.to(layer.weight.device) for x in (states.last_hidden_state[:, :-1], labels))
        weight, bias = (x.full_tensor() if isinstance(x, DTensor) else x for x in (layer.weight, layer.bias))
        whole = functools.partial(maybe_gather_lm_head_ctx, weight, bias)  # under ZeRO-3
        with nullcontext() if autocast else torch.autocast(weight.device.type, enabled=False):
            logps, entropy = head_logps(
                hidden, weight, labels, labels != IGNORED, bias=bias, weight_context=whole, **options
            )
        return FusedCausalLMOutput(log_probs=logps, entropy=entropy, aux_loss=_aux_loss(self, states, kwargs))

    model.forward = types.MethodType(forward, model)
    # transformers slices the last token out of the prompts' states; torch answers with a copy of the weight per row
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def _check_layer(model: PreTrainedModel) -> None:
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
        raise InvalidParameterError(
            f"The head of {type(model).__name__} is a {type(layer).__name__}, but log-probs need an "
            "nn.Linear with floating-point weights; leave the head out of adapters and quantisation."
        )


def _logit_options(config: Any) -> tuple[float | None, float]:
    """The head's softcap and scale, by the names that transformers' configurations use."""
    scale = 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            scale = getattr(config, name)
    if getattr(config, "logits_scaling", None) is not None:  # Granite divides by it, HyperCLOVA X multiplies
        scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    return getattr(config, "final_logit_softcapping", None), scale


def _aux_loss(model: PreTrainedModel, states: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The load-balancing loss of a mixture of experts, as transformers computes it."""
    if not kwargs.get("output_router_logits"):
        return None
    config = model.config.get_text_config()
    return load_balancing_loss_func(
        states.router_logits, config.num_experts, config.num_experts_per_tok, kwargs.get("attention_mask")
    )


@torch.no_grad()
def check_head(model: PreTrainedModel, temperature: float) -> None:
    """Compares `head_logps` with the model's own logits on a few tokens; call before the model is sharded.

    Raises:
        InvalidParameterError: They differ by more than rounding explains.
    """
    ids = torch.arange(PROBE_LENGTH, device=model.device)[None]
    training = model.training
    model.eval()
    logits = model(input_ids=ids).logits[0, :-1].float() / temperature
    expected = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    found = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[0]
    model.train(training)
    rounding = logits.abs().max() * torch.finfo(model.dtype).eps
    error = (found - expected).abs().max()
    if not error <= 1e-3 + 4 * rounding:
        raise InvalidParameterError(
            f"The logits of {type(model).__name__} give other log-probs than its head on its last hidden states (by "
            f"{error:.3g}), so something that neither fipo nor TRL knows lies between; take another model, or report "
            "this one."
        )

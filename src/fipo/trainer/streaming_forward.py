"""The streaming loss inside a transformers model's own `forward`, so that DDP, FSDP and DeepSpeed see an ordinary call.

TRL gives the model a `forward(labels=…, fused_lm_head=True)` that returns log-probs. `add_streaming_head` puts another
one over it: without gradient it scores with `streaming_logps`, and with `streaming=…`, a StreamingLoss, it computes
the loss and its gradients in one pass.
"""

import functools
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from fipo.core import LMHead, StreamingOutput, streaming_logps
from fipo.errors import InvalidParameterError

IGNORED = -100  # the label of a token that is not scored
PROBE_LENGTH = 4

StreamingLoss = Callable[[Tensor, LMHead], StreamingOutput]  # of hidden states and head


def add_streaming_head(model: PreTrainedModel, temperature: float, *, autocast: bool = True) -> None:
    """Patch `model.forward`. With `autocast=False` the head multiplies in its weight's own dtype.

    Raises:
        InvalidParameterError: The head is no plain linear layer, or more than that lies between hidden states and
            logits.
    """
    plain_forward = model.forward
    softcap, scale = _logit_options(model.config.get_text_config())
    _check_layer(model)

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(self: PreTrainedModel, *args: Any, streaming: StreamingLoss | None = None, **kwargs: Any) -> Any:
        if streaming is None and (not kwargs.get("fused_lm_head") or torch.is_grad_enabled()):
            return plain_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        kwargs.pop("fused_lm_head", None)
        states = self.base_model(*args, **{**kwargs, "use_cache": False})
        layer = self.get_output_embeddings()  # looked up on each call: FSDP and PEFT replace it
        hidden = states.last_hidden_state[:, :-1].to(layer.weight.device)
        weight, bias = (x.full_tensor() if isinstance(x, DTensor) else x for x in (layer.weight, layer.bias))
        switch = nullcontext() if autocast else torch.autocast(weight.device.type, enabled=False)
        with switch, maybe_gather_lm_head_ctx(weight, bias):
            head = LMHead(weight, bias, temperature, softcap, scale)
            if streaming is None:
                logps, entropy = streaming_logps(hidden, head, labels, labels != IGNORED)
                return FusedCausalLMOutput(log_probs=logps, entropy=entropy)
            result = streaming(hidden, head)
        return FusedCausalLMOutput(
            loss=result.loss, log_probs=result.logps, entropy=result.entropy, aux_loss=_aux_loss(self, states, kwargs)
        )

    model.forward = types.MethodType(forward, model)
    # transformers slices the last token out of the prompts' states; torch answers with a copy of the weight per row
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def _check_layer(model: PreTrainedModel) -> None:
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
        raise InvalidParameterError(
            f"The head of {type(model).__name__} is a {type(layer).__name__}, but the streaming loss needs an "
            "nn.Linear with floating-point weights; leave the head out of adapters and quantisation, or set "
            "fipo_streaming to false."
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
    """Compare the streaming head with the model's own logits on a few tokens; call before the model is sharded.

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
            f"{error:.3g}), so something unknown to the streaming loss lies between; set fipo_streaming to false."
        )

"""How far the forward's rounding moves weights: a few responses are scored again in float32 arithmetic.

docs/precision.md says why that is most of what bfloat16 weights say, while the noise floor is 0.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.utils import logging

from fipo.core import token_credit
from fipo.core.logged import NOISE_LIMIT, ROUNDING, rounding_warning
from fipo.core.rounding import log_ratio_error
from fipo.errors import InvalidParameterError
from fipo.trainer.credit import Credit

logger = logging.get_logger(__name__)

Scores = tuple[Tensor, Tensor]  # log-probs as the trainer computes them, and in float32 arithmetic

PROBED = 4  # responses of a rank
HALVES = (torch.bfloat16, torch.float16)


def forward_error(trainer: Any) -> float:
    """The expected |error| of a log-ratio in nats; 0 where weights and arithmetic are float32. Logits always are."""
    if halves := halves_among(trainer.model.parameters()):
        return max(log_ratio_error(dtype, "cast", "float32") for dtype in halves)
    return log_ratio_error(trainer.accelerator.mixed_precision, "autocast", "float32")


def halves_among(weights: Iterable[Tensor]) -> set[torch.dtype]:
    """The half precisions that occur."""
    return {weight.dtype for weight in weights if weight.dtype in HALVES}


class RoundingProbe:
    """An observer that logs "fipo/rounding" of traced rollouts: the mean error of a weight at their last update.

    The same responses are scored before the first update and at the last one, as the trainer scores them, and in
    float32 arithmetic of the same weights. Nothing is scored where the forward is float32, or the model is sharded.
    """

    def __init__(self, trainer: Any, traces: Any, *, sharded: bool) -> None:
        self.trainer, self.traces, self.sharded = trainer, traces, sharded
        self._probed: tuple[int, dict[str, Any], Scores] | None = None  # rollout, inputs, scores before its updates
        self._warned = False

    def __call__(self, credit: Credit) -> None:
        if self.sharded or not credit.training or not self.traces.due(credit.rollout):
            return
        if credit.micro_batch == 0 and forward_error(self.trainer):
            inputs = {name: x[:PROBED] for name, x in credit.inputs.items() if isinstance(x, Tensor) and x.dim()}
            self._probed = credit.rollout, inputs, self._scores(inputs)
        elif self._probed is not None and credit.update == self.trainer.args.updates_per_rollout - 1:
            (rollout, inputs, before), self._probed = self._probed, None
            if rollout == credit.rollout:
                self._log(inputs, before, self._scores(inputs))

    @torch.no_grad()
    def _scores(self, inputs: dict[str, Any]) -> Scores:
        trainer, completions = self.trainer, inputs["completion_ids"]
        model = trainer.accelerator.unwrap_model(trainer.model)
        ids = torch.cat([inputs["prompt_ids"], completions], 1)
        attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        rows = model, ids, attended, completions.shape[1]
        usual, _, _ = trainer._get_per_token_logps_and_entropies(*rows)
        with float32_arithmetic(model, trainer.accelerator):
            exact, _, _ = trainer._get_per_token_logps_and_entropies(*rows)
        return usual, exact

    def _log(self, inputs: dict[str, Any], before: Scores, after: Scores) -> None:
        trainer, advantages = self.trainer, inputs["advantages"]
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        usual, exact = (
            token_credit(new, old, advantages, mask, trainer.params).weight
            for new, old in zip(after, before, strict=True)
        )
        sums = torch.stack([((usual - exact).abs() * mask).sum(), mask.sum()])
        error, tokens = trainer.accelerator.reduce(sums, reduction="sum").tolist()
        error /= max(tokens, 1)
        trainer._metrics["train"][ROUNDING].append(error)
        if error > NOISE_LIMIT and not self._warned:
            self._warned = True
            logger.warning(rounding_warning(error, remedy(trainer.accelerator.mixed_precision)))


def check_float16(trainer: Any) -> None:
    """Raises an InvalidParameterError for float16 on a CPU, where accelerate would compute in float32 without a word,
    and for trained weights that are halves, whose gradients no scaler can divide."""
    if not trainer.args.fp16:
        return
    if trainer.accelerator.scaler is None and trainer.accelerator.device.type == "cpu":
        raise InvalidParameterError("fp16 is true, but CPUs have no units for float16; set it to false, or use a GPU.")
    if trained := halves_among(weight for weight in trainer.model.parameters() if weight.requires_grad):
        name = min(map(str, trained)).removeprefix("torch.")
        raise InvalidParameterError(
            f"The trained weights are {name}, but training in float16 scales gradients and needs float32 ones; "
            "load the model in float32, or set bf16 to true."
        )


def remedy(mixed_precision: str) -> str:
    """What to set instead of this."""
    exact = "set dtype to float32, bf16 and fp16 to false"
    return exact if mixed_precision == "fp16" else f"set dtype to float32 and fp16 to true, or {exact}"


@contextmanager
def float32_arithmetic(model: Any, accelerator: Any) -> Iterator[None]:
    """Within it `model` computes in float32 with the weights that its usual forward multiplies, rounded as they are
    there; modules are converted one at a time, so little memory is needed. For a model that is not sharded."""
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    head = model.get_output_embeddings()

    def widened(module: nn.Module) -> dict[str, Tensor]:
        """The module's weights as they were."""
        weights = module.named_parameters(recurse=False)
        before = {name: weight.data for name, weight in weights if weight.is_floating_point()}  # not packed ones
        for name, data in before.items():
            if autocast is not None and isinstance(module, nn.Linear):
                data = data.to(autocast)
            getattr(module, name).data = data.float()
        return before

    def restore(module: nn.Module, before: dict[str, Tensor]) -> None:
        for name, data in before.items():
            getattr(module, name).data = data

    kept: dict[nn.Module, dict[str, Tensor]] = {}
    hooks = []
    for module in model.modules():
        if module is not head and next(module.parameters(recurse=False), None) is not None:
            hooks.append(module.register_forward_pre_hook(lambda module, _: kept.update({module: widened(module)})))
            hooks.append(module.register_forward_hook(lambda module, _, __: restore(module, kept.pop(module))))
    of_head = widened(head)  # whose weight is read without a call
    off = patch.multiple(torch.autocast, __enter__=lambda self: self, __exit__=lambda *_: None)
    try:
        with torch.autocast(accelerator.device.type, enabled=False), off:  # accelerate's, inside `model.forward`
            yield
    finally:
        restore(head, of_head)
        for hook in hooks:
            hook.remove()

"""FIPOTrainer: TRL's GRPOTrainer with the FIPO loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers.utils import logging

from fipo.core import LMHead, Objective, StreamingOutput, TokenBatch, streaming_loss
from fipo.core.control import control_weights, response_orders
from fipo.core.logged import NOISE_LIMIT, noise_warning
from fipo.core.objective import reference_kl
from fipo.trainer.config import FIPOConfig, refuse_another_engine
from fipo.trainer.contract import MODEL_INPUTS
from fipo.trainer.credit import Credit, Observer
from fipo.trainer.credit_metrics import CreditMetrics
from fipo.trainer.dynamic_sampling import DynamicSampling
from fipo.trainer.streaming_forward import add_streaming_head, check_head
from fipo.trainer.tracing import TracedRollouts, TraceWriter

logger = logging.get_logger(__name__)

NOISE_CAUSES = (
    "usual causes are rounded logits (fipo_streaming: false), dropout, and kernels that are not deterministic"
)


PAPER = """\
@misc{ma2026fipo,
    title  = {FIPO: Eliciting Deep Reasoning with Future-KL Influenced Policy Optimization},
    author = {Ma, Chiyu and Yang, Shuo and Huang, Kexin and Lu, Jinda and Meng, Haoming and Wang, Shangshang and
              Ding, Bolin and Vosoughi, Soroush and Wang, Guoyin and Zhou, Jingren},
    year   = {2026},
    eprint = {arXiv:2603.19835},
}"""


class FIPOTrainer(DynamicSampling):
    """Trains with FIPO; everything but the loss is TRL's GRPOTrainer, whose arguments it takes.

    With the weights neutral (both clip ratios 0) and no sequence dropped, loss and gradient equal those of GRPOTrainer
    with the same `loss_type` and `delta`. Three layers lie between: `ExactResume` makes checkpoints atomic and resuming
    exact, `ScoredRollouts` treats failed rewards and measures lengths, `DynamicSampling` replaces groups of equal
    rewards.

    `observers` are called with a Credit after every micro-batch; append your own to see what the loss computed.
    """

    args: FIPOConfig
    entropy_coef: float
    _entropy_window_stats: Tensor | None
    _tag_names = ["trl", "fipo"]  # noqa: RUF012 - TRL's attribute, like the two that follow
    _name = "FIPO"
    _paper = {  # noqa: RUF012
        "title": "FIPO: Eliciting Deep Reasoning with Future-KL Influenced Policy Optimization",
        "id": "2603.19835",
        "citation": PAPER,
    }

    def __init__(self, model: Any, reward_funcs: Any, args: FIPOConfig | None = None, **kwargs: Any) -> None:
        args = FIPOConfig() if args is None else args
        if not isinstance(args, FIPOConfig):
            raise TypeError(f"args is a {type(args).__name__}, but FIPOTrainer needs a FIPOConfig; pass one.")
        super().__init__(model, reward_funcs, args=args, **kwargs)
        refuse_another_engine("DEEPSPEED", self.accelerator.state, replaced=not self.is_deepspeed_enabled)
        self.params = args.fipo_params
        extra = ("entropy", "fipo/length_weighted_advantage") + (("kl",) if self.beta else ())
        self.credit_metrics = {mode: CreditMetrics(args.updates_per_rollout, extra) for mode in ("train", "eval")}
        self._warned_of_noise = False
        rank, eos = self.accelerator.process_index, set(self.eos_token_ids)
        self.traces = TraceWriter(Path(args.output_dir), self._tokenizer, args, self.reward_func_names, rank, eos)
        self.observers: list[Observer] = [self._count, self.traces]
        self.add_callback(TracedRollouts(self.traces))
        if args.fipo_streaming:
            self._add_streaming_heads()

    def _add_streaming_heads(self) -> None:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        for model in (self.model, self.ref_model):
            if model is None:
                continue
            unwrapped = self.accelerator.unwrap_model(model)
            base = unwrapped.get_base_model() if is_peft_model(unwrapped) else unwrapped
            add_streaming_head(base, self.temperature, autocast=not self.args.cast_lm_head_to_fp32)
            if not sharded:
                check_head(base, self.temperature)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        compute = self._one_pass if self.args.fipo_streaming else self._from_logps
        result, bonus_mask, aux_loss = compute(model, inputs, mask)
        loss = result.loss
        if aux_loss is not None:
            self._metrics[self._mode]["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
            loss = loss + self.router_aux_loss_coef * aux_loss / self._accumulation
        if self._entropy_bonus_enabled and self.model.training:
            self._steer_entropy(result.entropy, bonus_mask)
        self._observe(result, inputs, mask)
        return loss

    def _one_pass(
        self, model: torch.nn.Module, inputs: dict[str, Any], mask: Tensor
    ) -> tuple[StreamingOutput, Tensor, Tensor | None]:
        """The loss by `streaming_loss`, inside the model's forward."""
        batch, length = self._token_batch(inputs, mask, mask), mask.shape[1]
        results = []

        def streaming(hidden: Tensor, head: LMHead) -> StreamingOutput:
            targets = inputs["completion_ids"]
            results.append(streaming_loss(hidden[:, -length:], head, targets, batch, self._objective))
            return results[0]

        def forward(**model_inputs: Any) -> Any:
            outputs = model(**model_inputs, streaming=streaming)
            results[0] = replace(results[0], loss=outputs.loss)  # as DDP and FSDP hand it back
            return outputs

        _, _, aux_loss = self._score(forward, inputs)
        return results[0], mask, aux_loss

    def _from_logps(
        self, model: torch.nn.Module, inputs: dict[str, Any], mask: Tensor
    ) -> tuple[StreamingOutput, Tensor, Tensor | None]:
        """The same loss from log-probs by TRL's fused head. What must see whole sequences first works only here.

        Weighing the advantages and leaving the rest to TRL would be shorter, but a dropped sequence's policy loss
        would stay in.
        """
        logps, entropy, aux_loss = self._score(model, inputs)
        factor, bonus_mask = None, mask
        if self.off_policy_mask_threshold is not None:
            advantages = inputs["advantages"]
            factor = self.get_off_policy_mask(
                advantages=advantages if advantages.dim() == 2 else advantages[:, None],
                per_token_logps=logps,
                sampling_per_token_logps=inputs.get("sampling_per_token_logps", inputs["old_per_token_logps"]),
                mask=mask,
                off_policy_threshold=self.off_policy_mask_threshold,
            )
        if self.top_entropy_quantile < 1.0:
            bonus_mask = mask & self.get_high_entropy_mask(entropy, mask.long(), 1 - self.top_entropy_quantile)
            factor = bonus_mask if factor is None else factor * bonus_mask
        batch = self._token_batch(inputs, mask, bonus_mask, factor)
        out = self._objective.credit(logps, batch)
        if self.args.fipo_control is not None:
            orders = response_orders(ids[here] for ids, here in zip(inputs["completion_ids"], mask, strict=True))
            out = control_weights(out, mask, self.args.fipo_control, orders)
        loss = self._objective.loss(out, logps, entropy, batch)
        return StreamingOutput(loss, out, logps.detach(), entropy.detach()), bonus_mask, aux_loss

    @property
    def _accumulation(self) -> int:
        return self.current_gradient_accumulation_steps if self.model.training else 1

    @property
    def update_index(self) -> int:
        """Which optimizer step since the last rollout this is, from 0."""
        return self._step // self.args.gradient_accumulation_steps % self.args.updates_per_rollout

    @property
    def _objective(self) -> Objective:
        return Objective(
            params=self.params,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            beta=self.beta,
            unbiased_kl=self.args.use_bias_correction_kl,
        )

    def _score(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs and entropies (B, T) of the completion tokens, and the router's auxiliary loss."""
        return self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in MODEL_INPUTS},
        )

    def _token_batch(
        self, inputs: dict[str, Any], mask: Tensor, bonus_mask: Tensor, factor: Tensor | None = None
    ) -> TokenBatch:
        """What the loss needs besides the policy; `factor` multiplies the policy loss."""
        if self.use_vllm and self.vllm_importance_sampling_correction:
            ratio = inputs["importance_sampling_ratio"]
            factor = ratio if factor is None else ratio * factor
        denominator = self._denominator(inputs, mask).expand(mask.shape)
        bonus = None
        if self._entropy_bonus_enabled:  # a mean of its own over tokens, whatever the denominator
            bonus = self._entropy_coefficient * denominator * bonus_mask
            bonus = bonus / (bonus_mask.sum().clamp(min=1.0) * self._accumulation)
        return TokenBatch(
            old_logps=inputs["old_per_token_logps"],
            advantages=inputs["advantages"],
            loss_mask=mask,
            ref_logps=inputs["ref_per_token_logps"] if self.beta else None,
            importance_weights=None if factor is None else factor.expand(mask.shape),
            entropy_coef=bonus,
            denominator=denominator,
        )

    def _denominator(self, inputs: dict[str, Any], mask: Tensor) -> Tensor:
        """TRL's normalisers, (1,) or (B, 1). Dropped sequences count, so that batches split over ranks add up."""
        rows = mask.shape[0]
        if self.loss_type == "dapo":
            # The rollout's tokens over all ranks, as the share of one update (train) and one rank.
            tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            share = self._accumulation / self.args.steps_per_generation if self.model.training else 1.0
            return (tokens * share)[None]
        if self.loss_type == "grpo":
            tokens = mask.sum(-1, keepdim=True).clamp(min=1.0) * rows
        elif self.loss_type == "bnpo":
            tokens = mask.sum()[None].clamp(min=1.0)
        else:  # dr_grpo; FIPOConfig admits no other
            tokens = mask.new_full((1,), rows * self.max_completion_length, dtype=torch.float32)
        return tokens * self._accumulation

    @property
    def _entropy_coefficient(self) -> float:
        above_target = self.use_adaptive_entropy and self._last_world_entropy > self.args.entropy_target
        return 0.0 if above_target else self.entropy_coef

    def _steer_entropy(self, entropy: Tensor, mask: Tensor) -> None:
        """TRL's adaptive bonus: after the last micro-batch of an update, moves the coefficient towards the target."""
        if self.use_adaptive_entropy:
            stats = torch.stack([(entropy * mask).sum(), mask.sum()])
            window = stats if self._entropy_window_stats is None else self._entropy_window_stats + stats
            self._entropy_window_stats = window
        if not self.accelerator.sync_gradients:
            return
        if self.use_adaptive_entropy:
            total, tokens = self.accelerator.reduce(window, reduction="sum").tolist()
            self._entropy_window_stats = None
            self._last_world_entropy = total / max(tokens, 1.0)
            step = self.args.entropy_coef_delta
            if self._last_world_entropy > self.args.entropy_target:
                step = -step
            self.entropy_coef = min(
                max(self.entropy_coef + step, self.args.entropy_coef_min), self.args.entropy_coef_max
            )
        self._metrics["train"]["entropy_coef"].append(self.entropy_coef)

    @torch.no_grad()
    def _observe(self, result: StreamingOutput, inputs: dict[str, Any], mask: Tensor) -> None:
        rollout, micro_batch = divmod(self._step, self.args.steps_per_generation * self.num_iterations)
        training = self.model.training
        credit = Credit(result, inputs, mask, training, rollout, micro_batch, self.update_index if training else 0)
        for observer in self.observers:
            observer(credit)

    def _count(self, credit: Credit) -> None:
        """The observer behind the metrics."""
        extra = {"entropy": credit.result.entropy, "fipo/length_weighted_advantage": credit.advantages}
        if self.beta:
            old_logps = credit.inputs["old_per_token_logps"] if self.args.use_bias_correction_kl else None
            extra["kl"] = reference_kl(credit.result.logps, credit.inputs["ref_per_token_logps"], old_logps)
        self.credit_metrics[self._mode].add(credit.tokens, credit.mask, credit.update, **extra)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = self._mode
        for name, value in self.credit_metrics[mode].reduce(self.accelerator).items():
            self._metrics[mode][name] = [value]
        if mode == "train":
            self._warn_of_noise(self._metrics[mode].get("fipo/noise_weight_shift", [0.0])[0])
        super().log(logs, start_time)

    def _warn_of_noise(self, shift: float) -> None:
        if shift > NOISE_LIMIT and not self._warned_of_noise:
            self._warned_of_noise = True
            logger.warning(noise_warning(shift, NOISE_CAUSES))

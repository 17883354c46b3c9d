"""FIPOTrainer: TRL's GRPOTrainer with the FIPO loss."""

from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from fipo.core.loss import FIPOOutput, fipo_loss
from fipo.trainer.config import FIPOConfig
from fipo.trainer.metrics import CreditMetrics
from fipo.trainer.rollout import RolloutExtras

logger = logging.get_logger(__name__)

NOISE_LIMIT = 0.01  # a weight moved by more than this by noise alone is worth a warning
MODEL_INPUTS = (  # what TRL passes on to multimodal models
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


class FIPOTrainer(RolloutExtras):
    """Trains with FIPO; everything but the loss is TRL's GRPOTrainer, whose arguments it takes.

    With the weights neutral (both clip ratios 0) and no sequence dropped, loss and gradient equal those of GRPOTrainer
    with the same `loss_type` and `delta`. Two layers lie between: `ExactResume` makes checkpoints atomic and resuming
    exact, `RolloutExtras` adds dynamic sampling, the treatment of failed rewards, and length percentiles.
    """

    args: FIPOConfig
    entropy_coef: float
    _entropy_window_stats: Tensor | None
    _tag_names = ["trl", "fipo"]  # noqa: RUF012 - TRL's attribute

    def __init__(self, model: Any, reward_funcs: Any, args: FIPOConfig | None = None, **kwargs: Any) -> None:
        args = FIPOConfig() if args is None else args
        if not isinstance(args, FIPOConfig):
            raise TypeError(f"args is a {type(args).__name__}, but FIPOTrainer needs a FIPOConfig; pass one.")
        super().__init__(model, reward_funcs, args=args, **kwargs)
        self.params = args.fipo_params
        extra = ("entropy", "fipo/length_weighted_advantage") + (("kl",) if self.beta else ())
        self._credit = {mode: CreditMetrics(args.updates_per_rollout, extra) for mode in ("train", "eval")}
        self._warned_of_noise = False

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        logps, entropies, aux_loss = self._score(model, inputs)
        old_logps = inputs["old_per_token_logps"]
        out = fipo_loss(
            logps,
            old_logps,
            inputs["advantages"],
            mask,
            self.params,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
        )
        entropy_mask = None
        if self.top_entropy_quantile < 1.0:
            entropy_mask = self.get_high_entropy_mask(entropies, mask, 1 - self.top_entropy_quantile)

        per_token = self._policy_term(out, logps, inputs, mask, entropy_mask)
        kl = self._reference_kl(logps, old_logps, inputs) if self.beta else None
        if kl is not None:
            per_token = per_token + self.beta * kl
        loss = self._normalise(torch.where(mask.bool(), per_token, 0), mask, inputs)
        if self._entropy_bonus_enabled:
            loss = self._add_entropy_bonus(loss, entropies, mask if entropy_mask is None else mask * entropy_mask)
        if aux_loss is not None:
            self._metrics[self._mode]["aux_loss"].append(self.accelerator.gather_for_metrics(aux_loss).mean().item())
            loss = loss + self.router_aux_loss_coef * aux_loss / self._accumulation
        self._record(out, mask, inputs["advantages"], entropies, kl)
        return loss

    @property
    def _accumulation(self) -> int:
        return self.current_gradient_accumulation_steps if self.model.training else 1

    @property
    def update_index(self) -> int:
        """Which optimizer step since the last rollout this is, from 0."""
        return self._step // self.args.gradient_accumulation_steps % self.args.updates_per_rollout

    def _score(self, model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
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

    def _policy_term(
        self, out: FIPOOutput, logps: Tensor, inputs: dict[str, Any], mask: Tensor, entropy_mask: Tensor | None
    ) -> Tensor:
        """The FIPO loss of kept tokens, times TRL's optional factors (OPSM, high-entropy mask, vLLM correction)."""
        per_token = torch.where(out.kept, out.loss, 0)
        if self.off_policy_mask_threshold is not None:
            advantages = inputs["advantages"]
            per_token = per_token * self.get_off_policy_mask(
                advantages=advantages if advantages.dim() == 2 else advantages[:, None],
                per_token_logps=logps,
                sampling_per_token_logps=inputs.get("sampling_per_token_logps", inputs["old_per_token_logps"]),
                mask=mask,
                off_policy_threshold=self.off_policy_mask_threshold,
            )
        if entropy_mask is not None:
            per_token = per_token * entropy_mask
        if self.use_vllm and self.vllm_importance_sampling_correction:
            per_token = per_token * inputs["importance_sampling_ratio"]
        return per_token

    def _reference_kl(self, logps: Tensor, old_logps: Tensor, inputs: dict[str, Any]) -> Tensor:
        """KL(π_θ ‖ π_ref) per token: the k3 estimate, importance-corrected with `use_bias_correction_kl`."""
        log_ratio = inputs["ref_per_token_logps"] - logps
        kl = log_ratio.exp() - log_ratio - 1
        return kl * (logps - old_logps).exp() if self.args.use_bias_correction_kl else kl

    def _normalise(self, per_token: Tensor, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
        """TRL's normalisers. Dropped sequences stay in every denominator, so batches split over ranks add up."""
        if self.loss_type == "dapo":
            # The rollout's tokens over all ranks, as the share of one update (train) and one rank.
            tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            share = self._accumulation / self.args.steps_per_generation if self.model.training else 1.0
            return per_token.sum() / (tokens * share)
        if self.loss_type == "grpo":
            loss = (per_token.sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
        elif self.loss_type == "bnpo":
            loss = per_token.sum() / mask.sum().clamp(min=1.0)
        else:  # dr_grpo; FIPOConfig admits no other
            loss = per_token.sum() / (per_token.size(0) * self.max_completion_length)
        return loss / self._accumulation

    def _add_entropy_bonus(self, loss: Tensor, entropies: Tensor, mask: Tensor) -> Tensor:
        """TRL's entropy bonus: a static coefficient, or one that steers the entropy towards `entropy_target`."""
        total, tokens = (entropies * mask).sum(), mask.sum()
        coefficient = self.entropy_coef
        if self.use_adaptive_entropy and self._last_world_entropy > self.args.entropy_target:
            coefficient = 0.0
        if self.use_adaptive_entropy and self.model.training:
            self._steer_entropy(torch.stack([total, tokens]).detach())
        if self.model.training and self.accelerator.sync_gradients:
            self._metrics["train"]["entropy_coef"].append(self.entropy_coef)
        return loss - coefficient * total / tokens.clamp(min=1.0) / self._accumulation

    def _steer_entropy(self, stats: Tensor) -> None:
        """Adds a micro-batch's (entropy sum, tokens); after the last one of an update, moves the coefficient."""
        window = stats if self._entropy_window_stats is None else self._entropy_window_stats + stats
        self._entropy_window_stats = window
        if not self.accelerator.sync_gradients:
            return
        total, tokens = self.accelerator.reduce(window, reduction="sum").tolist()
        self._entropy_window_stats = None
        self._last_world_entropy = total / max(tokens, 1.0)
        step = self.args.entropy_coef_delta
        if self._last_world_entropy > self.args.entropy_target:
            step = -step
        self.entropy_coef = min(max(self.entropy_coef + step, self.args.entropy_coef_min), self.args.entropy_coef_max)

    @torch.no_grad()
    def _record(self, out: FIPOOutput, mask: Tensor, advantages: Tensor, entropies: Tensor, kl: Tensor | None) -> None:
        extra = {"entropy": entropies}
        per_token = advantages if advantages.dim() == 2 else advantages[:, None]
        extra["fipo/length_weighted_advantage"] = per_token.expand(mask.shape)
        if kl is not None:
            extra["kl"] = kl
        self._credit[self._mode].add(out, mask, self.update_index if self.model.training else 0, **extra)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = self._mode
        for name, value in self._credit[mode].reduce(self.accelerator).items():
            self._metrics[mode][name] = [value]
        if mode == "train":
            self._warn_of_noise(self._metrics[mode].get("fipo/noise_weight_shift", [0.0])[0])
        super().log(logs, start_time)

    def _warn_of_noise(self, weight_shift: float) -> None:
        if weight_shift > NOISE_LIMIT and not self._warned_of_noise:
            self._warned_of_noise = True
            logger.warning(
                f"Noise floor: at the first update after a rollout log-ratios must be 0, but they move the weights by "
                f"{weight_shift:.1%} on average. Usual causes: log-probs of the rollout engine as π_old, logits "
                "rounded to bfloat16 (set cast_lm_head_to_fp32), dropout, or another temperature or top-p in sampling "
                "than in scoring."
            )

"""FIPOTrainer: TRL's GRPOTrainer, with the advantages of every token multiplied by FIPO's factor."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.utils.data import Sampler
from transformers.utils import logging
from trl import GRPOTrainer

from fipo.core import token_credit
from fipo.core.credit import engine_inputs
from fipo.core.layout import per_token
from fipo.core.logged import NOISE_LIMIT, noise_warning, warn_of_non_finite
from fipo.errors import InvalidParameterError
from fipo.trainer.checkpoint import STAGING, EpochRepeatSampler, WholeCheckpoints
from fipo.trainer.config import FIPOConfig, refuse_another_engine
from fipo.trainer.credit import Credit, Observer
from fipo.trainer.fresh_groups import FreshGroups
from fipo.trainer.generation import read_prompts_once
from fipo.trainer.head import add_head, check_head
from fipo.trainer.metrics import CreditMetrics
from fipo.trainer.rounding import RoundingProbe, check_float16
from fipo.trainer.scores import Scores
from fipo.trainer.traced_rollouts import TracedRollouts

logger = logging.get_logger(__name__)

PAPER = """\
@misc{ma2026fipo,
    title  = {FIPO: Eliciting Deep Reasoning with Future-KL Influenced Policy Optimization},
    author = {Ma, Chiyu and Yang, Shuo and Huang, Kexin and Lu, Jinda and Meng, Haoming and Wang, Shangshang and
              Ding, Bolin and Vosoughi, Soroush and Wang, Guoyin and Zhou, Jingren},
    year   = {2026},
    eprint = {arXiv:2603.19835},
}"""


class FIPOTrainer(GRPOTrainer):
    """Trains with FIPO; everything but the factor on the advantages is TRL's GRPOTrainer, whose arguments it takes.

    With the weights neutral (both clip ratios 0) and no sequence dropped it is GRPOTrainer with the same `delta`. Three
    objects do what TRL does not: `scores` treats failed rewards, `fresh_groups` replaces groups of equal rewards where
    dynamic sampling is on, and `checkpoints` makes checkpoints atomic and resuming exact.

    `observers` are called with a Credit after every micro-batch; append your own to see what each token got.
    """

    args: FIPOConfig
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
        if not GRPOTrainer.__module__.startswith("trl."):
            raise InvalidParameterError(
                f"GRPOTrainer is {GRPOTrainer.__module__}'s, which does not call the loss that FIPO needs; import fipo "
                "before unsloth, or train without it."
            )
        self._weighed: dict[str, Any] | None = None  # the micro-batch whose loss is being computed
        super().__init__(model, reward_funcs, args=args, **kwargs)
        refuse_another_engine("DEEPSPEED", self.accelerator.state, replaced=not self.is_deepspeed_enabled)
        check_float16(self)
        if not any(weight.requires_grad for weight in self.model.parameters()):
            raise InvalidParameterError(
                "The model has no trainable weight, so nothing would be learned; unfreeze some."
            )
        self.params = args.fipo_params
        self.scores, self.checkpoints = Scores(self), WholeCheckpoints(self)
        self.fresh_groups = FreshGroups(self, self._scored_rollout) if args.fipo_dynamic_sampling_rounds else None
        self.credit_metrics = {mode: CreditMetrics(args.updates_per_rollout) for mode in ("train", "eval")}
        self._warned_of_noise = False
        traces = TracedRollouts(self)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        rounding = RoundingProbe(self, traces, sharded=sharded)
        self.observers: list[Observer] = [lambda credit: self.credit_metrics[self.mode].add(credit), traces, rounding]
        self.add_callback(traces)
        memory = None if args.fipo_head_memory is None else int(args.fipo_head_memory * 2**30)
        for model in filter(None, (self.model, self.ref_model)):
            unwrapped = self.accelerator.unwrap_model(model)
            base = unwrapped.get_base_model() if is_peft_model(unwrapped) else unwrapped
            add_head(base, memory)
            if not sharded:
                check_head(base, self.temperature)
                read_prompts_once(base)  # ranks of a sharded model must make equally many calls

    # The loss: TRL scores the micro-batch, and computes its own loss of advantages that were weighed in between.

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._weighed = {**inputs}
        try:
            loss = super()._compute_loss(model, self._weighed)
        finally:
            self._weighed = None
        for observer in self.observers:
            observer(self._credit)
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if self._weighed is not None:
            self._credit = self._weigh(self._weighed, logps.detach(), entropies.detach())
        return logps, entropies, aux_loss

    @torch.no_grad()
    def _weigh(self, inputs: dict[str, Any], logps: Tensor, entropy: Tensor) -> Credit:
        """Multiplies the advantages in `inputs` by the factor, and gives back what was found."""
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()
        old_logps, advantages = inputs["old_per_token_logps"], per_token("advantages", inputs["advantages"], mask, None)
        known = {"logps": logps, "old_logps": old_logps, "advantages": advantages, "loss_mask": mask}
        rejected = None
        if self.use_vllm and self.vllm_importance_sampling_correction:  # 0: vLLM's policy was too far away
            rejected = (inputs["importance_sampling_ratio"] == 0).expand(mask.shape)
        credit = token_credit(**known, params=self.params, rejected=rejected)
        if self.args.weighting is not None:
            fixed = (ids[here] for ids, here in zip(inputs["completion_ids"], mask, strict=True))
            credit = self.args.weighting.of_rows(credit, known | {"entropy": entropy}, fixed)
        given = dict(inputs)
        inputs["advantages"], inputs["old_per_token_logps"] = engine_inputs(credit, logps, old_logps, advantages)
        rollout, micro_batch = divmod(self._step, self.args.steps_per_generation * self.num_iterations)
        training = self.model.training
        update = self.update_index if training else 0
        return Credit(credit, logps, entropy, given, mask, training, rollout, micro_batch, update)

    @property
    def update_index(self) -> int:
        """Which optimizer step since the last rollout this is, from 0."""
        return self._step // self.args.gradient_accumulation_steps % self.args.updates_per_rollout

    @property
    def mode(self) -> str:
        """As TRL calls it: train or eval."""
        return "train" if self.model.training else "eval"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics[self.mode]
        found = self.credit_metrics[self.mode].reduce(self.accelerator)
        metrics.update({name: [value] for name, value in found.items()})
        shift = found.get("fipo/noise_weight_shift", 0.0)
        if self.mode == "train" and shift > NOISE_LIMIT and not self._warned_of_noise:
            self._warned_of_noise = True
            logger.warning(noise_warning(shift))
        if found.get("fipo/non_finite", 0.0) > 0:
            warn_of_non_finite()
        if "train_loss" in logs:
            logs = logs | self.checkpoints.mean_loss(self.state.log_history)
        super().log(logs, start_time)

    # The rollout: failed rewards leave the loss, and groups of equal rewards may be replaced.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.scores.begin()
        rollout = self._scored_rollout(inputs)
        if self.model.training:
            if self.fresh_groups is not None:
                self.fresh_groups.fill(rollout)
            self.scores.end()
        return rollout

    def _scored_rollout(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self.scores.put_into(super()._generate_and_score_completions(inputs), len(inputs))

    def _calculate_rewards(self, inputs: list[Any], prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self.scores.see(rewards, completion_ids_list)

    # Checkpoints: whole or absent, and resumed exactly.

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's. Raises an InvalidParameterError where machines would each write a part of every checkpoint."""
        self.checkpoints.require_a_shared_folder()
        return super().train(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        run = super()._get_output_dir(trial=trial)
        return os.path.join(run, STAGING) if self.checkpoints.staging else run  # beside it while it is not complete

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.checkpoints.save(Path(self._get_output_dir(trial)), partial(super()._save_checkpoint, model, trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.checkpoints.staging:  # that folder is renamed while the upload runs
            super()._push_from_checkpoint(checkpoint_folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.checkpoints.require_whole(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.checkpoints.resume(Path(checkpoint))

    def _run_epoch(self, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # transformers looks for the end only after an update
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        return EpochRepeatSampler(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

"""Traces while training: completions of every so many rollouts, and a report of each for the tracker."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from fipo.errors import DataError
from fipo.report.tracking import TRACKERS, log_credit
from fipo.run_folder import TRACES_FOLDER
from fipo.traces.columns import trace_columns
from fipo.traces.tokens import byte_decoder
from fipo.traces.writer import Completion, TraceOptions, TraceWriter
from fipo.trainer.config import FIPOConfig
from fipo.trainer.credit import Credit
from fipo.trainer.rounding import forward_error

logger = logging.get_logger(__name__)


class TracedRollouts(TrainerCallback):
    """An observer that writes the first `fipo_trace_samples` completions of every `fipo_trace_every`-th rollout and of
    the last, each at the update that trains on it; and a callback that then logs the rollout's credit as a report where
    W&B or Trackio track the run. A full or absent disk costs the traces, with a warning, and not the run."""

    last_rollout: int | None = None  # known once the training begins

    def __init__(self, trainer: Any) -> None:
        self.config, self.trainer = trainer.args, trainer
        self.run = Path(self.config.output_dir)
        if not self.config.fipo_trace_every:
            return
        byte_decoder(trainer._tokenizer)  # which refuses what has no bytes, before the run
        self.writer = TraceWriter(
            options=TraceOptions(self.run / TRACES_FOLDER, every=self.config.fipo_trace_every),
            tokenizer=trainer._tokenizer,
            params=trainer.params,
            rank=trainer.accelerator.process_index,
            updates_per_rollout=self.config.updates_per_rollout,
            weighting=self.config.weighting,
            log_ratio_error=forward_error(trainer),
            takes_folder=False,  # whoever starts the run looks after its folder
        )

    def due(self, rollout: int) -> bool:
        """Whether this rollout is traced."""
        every = self.config.fipo_trace_every
        return every > 0 and (rollout % every == 0 or rollout == self.last_rollout)

    def __call__(self, credit: Credit) -> None:
        if credit.training and self.due(credit.rollout) and "sample_index" in credit.inputs:  # else made by hand
            self.writer.write(credit.rollout, credit.micro_batch, self._completions(credit))

    def _completions(self, credit: Credit) -> Iterator[Completion]:
        inputs, ids = credit.inputs, credit.inputs["completion_ids"]
        others = {"logps": credit.logps, "old_logps": inputs["old_per_token_logps"], "entropy": credit.entropy}
        others |= {"advantages": credit.advantages, "rollout_logps": inputs.get("sampling_per_token_logps")}  # vLLM's
        known = {name: column for name, column in others.items() if column is not None}
        found = trace_columns(credit.tokens, credit.mask, self.config.clip_range, **known)
        columns = {name: column.cpu() for name, column in found.items()}
        for row, sample in enumerate(inputs["sample_index"].tolist()):
            if sample >= self.config.fipo_trace_samples:
                continue
            length = int(inputs["completion_mask"][row].sum()) or int(
                ids[row].ne(self.trainer._tokenizer.pad_token_id).sum()
            )
            ended = length > 0 and int(ids[row, length - 1]) in self.trainer.eos_token_ids
            yield Completion(
                place=(credit.rollout, credit.update, sample // self.config.num_generations, sample),
                prompt=inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()],
                tokens=ids[row, :length],
                columns={name: column[row, :length] for name, column in columns.items()},
                dropped=bool(credit.tokens.dropped[row]),
                reward=float(inputs["reward_total"][row]),
                rewards=dict(zip(self.trainer.reward_func_names, inputs["rewards_by_name"][row].tolist(), strict=True)),
                truncated=not ended,
            )

    def on_train_begin(self, args: FIPOConfig, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.last_rollout = (state.max_steps - 1) // args.updates_per_rollout

    def on_step_end(self, args: FIPOConfig, state: TrainerState, control: TrainerControl, **_: object) -> None:
        rollout, update = divmod(state.global_step - 1, args.updates_per_rollout)
        ended = update == args.updates_per_rollout - 1 or state.global_step == state.max_steps
        if not (ended and self.due(rollout) and state.is_world_process_zero):
            return
        trackers = [import_module(name) for name in TRACKERS if name in args.report_to]
        try:
            log_credit(self.run, rollout, trackers, **{"train/global_step": state.global_step})
        except (DataError, OSError) as error:  # with several machines, the traced samples may lie on another
            logger.warning(f"No report was logged: {error}")

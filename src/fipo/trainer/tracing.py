"""Traces while training: one small Parquet file a micro-batch of every traced rollout, and a report for the tracker."""

from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from fipo.core.logged import CREDIT_REPORT
from fipo.errors import DataError
from fipo.report.page import rollout_report
from fipo.run_folder import TRACES_FOLDER, trace_file
from fipo.traces import Trace, write_traces
from fipo.traces.schema import token_columns
from fipo.traces.tokens import byte_decoder
from fipo.trainer.config import FIPOConfig
from fipo.trainer.credit import Credit

logger = logging.get_logger(__name__)

TRACKERS_WITH_HTML = ("wandb", "trackio")  # both have Html and log


class TraceWriter:
    """An observer: writes the first `fipo_trace_samples` completions of every `fipo_trace_every`-th rollout and of the
    last, each at the update that trains on it. A full or absent disk costs the traces, with a warning, and not the run.
    """

    last_rollout: int | None = None  # known once the training begins

    def __init__(
        self,
        run: Path,
        tokenizer: PreTrainedTokenizerBase,
        config: FIPOConfig,
        reward_names: list[str],
        rank: int,
        eos_token_ids: set[int],
    ) -> None:
        self.run, self.tokenizer, self.config = run, tokenizer, config
        self.reward_names, self.rank, self.eos_token_ids = reward_names, rank, eos_token_ids
        if config.fipo_trace_every > 0:
            self.bytes_of = byte_decoder(tokenizer)

    def due(self, rollout: int) -> bool:
        """Whether this rollout is traced."""
        every = self.config.fipo_trace_every
        return every > 0 and (rollout % every == 0 or rollout == self.last_rollout)

    def __call__(self, credit: Credit) -> None:
        inputs = credit.inputs
        if not credit.training or not self.due(credit.rollout) or "sample_index" not in inputs:  # a batch made by hand
            return
        rows = (inputs["sample_index"] < self.config.fipo_trace_samples).nonzero()[:, 0].tolist()
        if not rows:
            return
        columns = self._columns(credit)
        traces = [self._trace(row, columns, credit) for row in rows]
        name, config = trace_file(credit.rollout, credit.micro_batch, self.rank), self.config
        try:
            write_traces(
                traces,
                self.run / TRACES_FOLDER / name,
                config.fipo_params,
                control=config.fipo_control,
                updates_per_rollout=config.updates_per_rollout,
            )
        except OSError as error:
            logger.warning(f"{name} was not written, and the run goes on without it: {error}")

    def _columns(self, credit: Credit) -> dict[str, Any]:
        sampled = credit.inputs.get("sampling_per_token_logps")  # vLLM's
        return token_columns(
            credit.tokens,
            credit.mask,
            logps=credit.result.logps,
            old_logps=credit.inputs["old_per_token_logps"],
            advantages=credit.advantages,
            entropy=credit.result.entropy,
            **({} if sampled is None else {"rollout_logps": sampled}),
        )

    def _trace(self, row: int, columns: dict[str, Any], credit: Credit) -> Trace:
        inputs = credit.inputs
        written = inputs["completion_ids"][row].ne(self.tokenizer.pad_token_id)
        length = int(inputs["completion_mask"][row].sum()) or int(written.sum())
        ids = inputs["completion_ids"][row, :length].cpu().numpy().astype("int32")
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        ended = length > 0 and int(ids[-1]) in self.eos_token_ids
        sample = int(inputs["sample_index"][row])
        rewards = zip(self.reward_names, inputs["rewards_by_name"][row].tolist(), strict=True)
        return Trace(
            run=self.run.name,
            rollout=credit.rollout,
            update=credit.update,
            group=sample // self.config.num_generations,
            sample=sample,
            prompt=self.tokenizer.decode(prompt),
            token_ids=ids,
            token_bytes=[self.bytes_of(int(index)) for index in ids],
            reward=float(inputs["reward_total"][row]),
            rewards=dict(rewards),
            dropped=bool(credit.tokens.dropped[row]),
            truncated=not ended,
            stop_reason="stop" if ended else "length",
            **{name: values[row, :length] for name, values in columns.items()},
        )


class TracedRollouts(TrainerCallback):
    """Tells the traces which rollout is the last. After the last update of a traced one, logs its credit as a report
    where W&B or Trackio track the run."""

    def __init__(self, traces: TraceWriter) -> None:
        self.traces = traces

    def on_train_begin(self, args: FIPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.traces.last_rollout = (state.max_steps - 1) // args.updates_per_rollout

    def on_step_end(self, args: FIPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        rollout, update = divmod(state.global_step - 1, args.updates_per_rollout)
        trackers = [import_module(name) for name in TRACKERS_WITH_HTML if name in args.report_to]
        ended = update == args.updates_per_rollout - 1 or state.global_step == state.max_steps
        if not (trackers and ended and self.traces.due(rollout) and state.is_world_process_zero):
            return
        try:
            report = rollout_report(self.traces.run, rollout)
        except (DataError, OSError) as error:  # with several machines, the traced samples may lie on another
            logger.warning(f"No report was logged: {error}")
            return
        for tracker in trackers:
            tracker.log({CREDIT_REPORT: tracker.Html(report, inject=False), "train/global_step": state.global_step})

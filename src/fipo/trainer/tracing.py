"""Traces while training: one small Parquet file a micro-batch of every traced rollout, and a page for the tracker."""

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from fipo.core import StreamingOutput
from fipo.core.layout import per_token
from fipo.errors import DataError
from fipo.params import FIPOParams
from fipo.report.page import Report
from fipo.run_folder import TRACES_FOLDER
from fipo.traces import Trace, read_traces, write_traces
from fipo.traces.schema import flags_of
from fipo.traces.tokens import byte_decoder
from fipo.trainer.config import FIPOConfig

logger = logging.get_logger(__name__)

TRACKERS_WITH_PAGES = ("wandb", "trackio")  # both have Html and log
PAGE = "fipo/credit"


class TraceWriter:
    """Traces of the first `samples` completions of every `every`-th rollout, each at the update that trains on it."""

    def __init__(
        self,
        run: Path,
        tokenizer: PreTrainedTokenizerBase,
        params: FIPOParams,
        reward_names: list[str],
        *,
        every: int,
        samples: int,
        group_size: int,
        rank: int,
        eos_token_ids: set[int],
        control: str | None,
    ) -> None:
        self.run, self.params, self.reward_names = run, params, reward_names
        self.every, self.samples, self.group_size, self.rank = every, samples, group_size, rank
        self.eos_token_ids, self.control = eos_token_ids, control
        self.tokenizer = tokenizer
        if every > 0:
            self.bytes_of = byte_decoder(tokenizer)

    def due(self, rollout: int) -> bool:
        return self.every > 0 and rollout % self.every == 0

    def write(
        self, result: StreamingOutput, inputs: dict[str, Any], mask: Tensor, *, rollout: int, step: int, update: int
    ) -> None:
        """`step`: which micro-batch since the rollout this is; `update`: which update it is part of.

        A full or absent disk costs the traces, with a warning, and not the run.
        """
        rows = (inputs["sample_index"] < self.samples).nonzero()[:, 0].tolist()
        if not rows:
            return
        columns = self._columns(result, inputs, mask)
        traces = [self._trace(row, columns, inputs, result, rollout, update) for row in rows]
        name = f"{_prefix(rollout)}step_{step:04d}_rank_{self.rank}.parquet"
        try:
            write_traces(traces, self.run / TRACES_FOLDER / name, self.params, control=self.control)
        except OSError as error:
            logger.warning(f"{name} was not written, and the run goes on without it: {error}")

    def page(self, rollout: int) -> str:
        """The report about one traced rollout's credit, HTML.

        Raises:
            DataError: No trace of it lies here.
        """
        traces = read_traces(self.run, f"{_prefix(rollout)}*.parquet")
        return Report(traces=[(f"{self.run.name}, rollout {rollout}", traces)], problems=traces.problems).html()

    def _columns(self, result: StreamingOutput, inputs: dict[str, Any], mask: Tensor) -> dict[str, Any]:
        tokens = result.tokens
        tensors = {
            "old_logps": inputs["old_per_token_logps"],
            "logps": result.logps,
            "log_ratio": tokens.log_ratio,
            "future_kl": tokens.future_kl,
            "raw_weight": tokens.raw_weight,
            "weight": tokens.weight,
            "entropy": result.entropy,
            "advantages": per_token("advantages", inputs["advantages"], mask, None),
        }
        arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}
        return arrays | {"trained": mask.cpu().numpy(), "flags": flags_of(tokens, mask).cpu().numpy()}

    def _trace(
        self,
        row: int,
        columns: dict[str, Any],
        inputs: dict[str, Any],
        result: StreamingOutput,
        rollout: int,
        update: int,
    ) -> Trace:
        written = inputs["completion_ids"][row].ne(self.tokenizer.pad_token_id)
        length = int(inputs["completion_mask"][row].sum()) or int(written.sum())
        ids = inputs["completion_ids"][row, :length].cpu().numpy().astype("int32")
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        ended = length > 0 and int(ids[-1]) in self.eos_token_ids
        sample = int(inputs["sample_index"][row])
        rewards = zip(self.reward_names, inputs["rewards_by_name"][row].tolist(), strict=True)
        return Trace(
            run=self.run.name,
            rollout=rollout,
            update=update,
            group=sample // self.group_size,
            sample=sample,
            prompt=self.tokenizer.decode(prompt),
            token_ids=ids,
            token_bytes=[self.bytes_of(int(index)) for index in ids],
            reward=float(inputs["reward_total"][row]),
            rewards=dict(rewards),
            dropped=bool(result.tokens.dropped[row]),
            truncated=not ended,
            stop_reason="stop" if ended else "length",
            **{name: values[row, :length] for name, values in columns.items()},
        )


def _prefix(rollout: int) -> str:
    return f"rollout_{rollout:06d}_"


class PagesForTrackers(TrainerCallback):
    """After the last update of a traced rollout, logs its credit as a page where W&B or Trackio track the run."""

    def __init__(self, traces: TraceWriter) -> None:
        self.traces = traces

    def on_step_end(self, args: FIPOConfig, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        rollout, update = divmod(state.global_step - 1, args.updates_per_rollout)
        trackers = [import_module(name) for name in TRACKERS_WITH_PAGES if name in args.report_to]
        ended = update == args.updates_per_rollout - 1
        if not (trackers and ended and self.traces.due(rollout) and state.is_world_process_zero):
            return
        try:
            page = self.traces.page(rollout)
        except (DataError, OSError) as error:  # with several machines, the traced samples may lie on another
            logger.warning(f"No page was logged: {error}")
            return
        for tracker in trackers:
            tracker.log({PAGE: tracker.Html(page, inject=False), "train/global_step": state.global_step})

"""Writes traces while training: one small Parquet file a micro-batch of every traced rollout."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fipo.core import StreamingOutput
from fipo.core.layout import per_token
from fipo.params import FIPOParams
from fipo.traces import Trace, write_traces
from fipo.traces.schema import flags_of
from fipo.traces.tokens import byte_decoder

FOLDER = "traces"


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
    ) -> None:
        self.run, self.params, self.reward_names = run, params, reward_names
        self.every, self.samples, self.group_size, self.rank = every, samples, group_size, rank
        self.tokenizer, self.bytes_of = tokenizer, byte_decoder(tokenizer)

    def due(self, rollout: int) -> bool:
        return self.every > 0 and rollout % self.every == 0

    def write(
        self, result: StreamingOutput, inputs: dict[str, Any], mask: Tensor, *, rollout: int, step: int, update: int
    ) -> None:
        """`step`: which micro-batch since the rollout this is; `update`: which update it is part of."""
        rows = (inputs["sample_index"] < self.samples).nonzero()[:, 0].tolist()
        if not rows:
            return
        columns = self._columns(result, inputs, mask)
        traces = [self._trace(row, columns, inputs, result, rollout, update) for row in rows]
        name = f"rollout_{rollout:06d}_step_{step:04d}_rank_{self.rank}.parquet"
        write_traces(traces, self.run / FOLDER / name, self.params)

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
        length = int(max(inputs["completion_mask"][row].sum(), 0)) or int(written.sum())
        ids = inputs["completion_ids"][row, :length].cpu().numpy().astype("int32")
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        ended = length > 0 and ids[-1] == self.tokenizer.eos_token_id
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

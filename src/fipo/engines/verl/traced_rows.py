"""Traces from verl: what the loss used, with the tokens that verl's policy losses do not see.

One function of verl is wrapped, and only where a trace_dir is given: `no_padding_2_padding`, as `ppo_loss` in
verl/workers/utils/losses.py finds it. `ppo_loss` calls it right before the policy loss, first with log-probs and then
with entropies, and with the whole micro-batch, which holds the tokens, the prompt's `uid`, the rewards and the step.
"""

import inspect
from collections import Counter
from collections.abc import Iterator
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from verl.utils import tensordict_utils
from verl.workers.utils import losses

from fipo.core.credit import TokenCredit
from fipo.engines.verl.guard import forward_error
from fipo.engines.verl.metrics import rows_of_an_update
from fipo.errors import FIPOError
from fipo.traces.columns import trace_columns
from fipo.traces.writer import Completion, TraceWriter, among, group_number

REMEDY = "drop policy_loss.trace_dir, or train with verl 0.9.1's main_ppo"
CALL = 'log_prob = no_padding_2_padding(model_output["log_probs"], data)'  # in ppo_loss of verl 0.7.1, 0.8.0 and 0.9.1
_seen: list[tuple[Any, Tensor]] = []  # micro-batches that the wrapped function was called with, and what it returned


def watch_micro_batches() -> None:
    """Wraps verl's function, once a process. Raises a FIPOError where verl's ppo_loss is not as it was read."""
    original = getattr(losses, "no_padding_2_padding", None)
    if hasattr(original, "__wrapped__"):  # by this function
        return
    if original is None or CALL not in inspect.getsource(losses.ppo_loss):
        raise FIPOError(
            f"{losses.__file__}: ppo_loss does not call no_padding_2_padding as in verl 0.7.1 to 0.9.1, and fipo finds "
            f"the tokens of its traces there; {REMEDY}."
        )

    @wraps(original)
    def no_padding_2_padding(tensor: Tensor, data: Any) -> Tensor:
        if _seen and _seen[0][0] is not data:
            _seen.clear()
        _seen.append((data, original(tensor, data)))
        return _seen[-1][1]

    losses.no_padding_2_padding = no_padding_2_padding


class Traces:
    """This process' part in the traces of a run.

    A worker learns how large a rollout is by having trained on one: the first after a start is counted, not traced.
    """

    def __init__(self) -> None:
        self.rollout = -1
        self.rows = self.micro_batches = self.rows_before = 0  # of this rollout so far, and of the one before
        self.samples: dict[Any, int] = {}  # of the rollout: what identifies a sample → its number
        self.writer: TraceWriter | None = None

    @torch.no_grad()
    def see(
        self, credit: TokenCredit, log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, mask: Tensor, config: Any
    ) -> None:
        """Writes the chosen completions of a micro-batch, if its rollout is traced; the arguments are the loss' own.
        Raises a FIPOError where traces are asked for, but this verl does not give what they need."""
        options = config.policy_loss.trace_options()
        if options is None:
            return
        data, entropy = self._micro_batch_of(log_prob)
        update = int(self.rows / rows_of_an_update(config))
        self.rows += len(mask)
        step, self.micro_batches = self.micro_batches, self.micro_batches + 1
        if not options.due(self.rollout) or not self.rows_before:
            return
        ranks, rank, writes = _place(data, config)
        if not writes:
            return
        others = {"logps": log_prob, "old_logps": old_log_prob, "advantages": advantages}
        others |= {} if entropy is None else {"entropy": entropy}
        if "rollout_log_probs" in data:
            sampled = _padded(data["rollout_log_probs"], log_prob.shape[1])
            if not torch.equal(sampled[mask], old_log_prob[mask]):  # else π_old is the engine's
                others["rollout_logps"] = sampled
        low, high = config.clip_ratio_low, config.clip_ratio_high
        clip_range = (config.clip_ratio if low is None else low, config.clip_ratio if high is None else high)
        columns = {name: column.cpu() for name, column in trace_columns(credit, mask, clip_range, **others).items()}
        share = options.samples / ranks / (self.rows_before / config.ppo_epochs)
        completions = self._completions(data, credit.dropped.tolist(), columns, update, share)
        if self.writer is None:
            settings, model = config.policy_loss, config.model_config
            names = ("tokenizer", "local_path", "path")
            tokenizer = next((found for name in names if (found := getattr(model, name, None))), None)
            how: Any = {"params": settings.params(config.clip_ratio_c), "weighting": settings.weighting}
            how |= {"options": options, "tokenizer": tokenizer, "rank": rank, "ranks": ranks, "updates_per_rollout": 0}
            self.writer = TraceWriter(**how, log_ratio_error=forward_error(config))
        self.writer.write(self.rollout, step, completions)

    def _micro_batch_of(self, log_prob: Tensor) -> tuple[Any, Tensor | None]:
        """The micro-batch that these log-probs, which came first, are of, and its entropies where verl computes them.
        With the first of a new rollout counting starts again."""
        seen = _seen.copy()
        _seen.clear()
        if not seen or seen[0][1] is not log_prob:
            raise FIPOError(
                f"policy_loss.trace_dir is set, but it is not verl's ppo_loss that calls the loss; {REMEDY}."
            )
        data = seen[0][0]
        steps = tensordict_utils.get(data, "global_steps")
        found = set(steps if isinstance(steps, list) else [] if steps is None else [steps])
        if len(found) != 1 or min(found) < self.rollout:
            found_instead = f"hold the steps {sorted(found)} after {self.rollout}" if found else "do not hold the step"
            raise FIPOError(f"policy_loss.trace_dir is set, but verl's batches {found_instead}; {REMEDY}.")
        rollout = int(min(found))
        if rollout != self.rollout:
            self.rollout, self.rows_before = rollout, self.rows
            self.rows, self.micro_batches, self.samples = 0, 0, {}
        return data, seen[1][1] if len(seen) > 1 else None

    def _completions(
        self, data: Any, dropped: list[bool], columns: dict[str, Tensor], update: int, share: float
    ) -> Iterator[Completion]:
        """The chosen rows: about this share of them."""
        prompts, responses = _token_ids(data)
        uids = tensordict_utils.get(data, "uid") or [tuple(prompt.tolist()) for prompt in prompts]
        rewards, sessions = (tensordict_utils.get(data, name) for name in ("rm_scores", "session_id"))
        occurred, ranks, rank = Counter[Any](), dist.get_world_size(), dist.get_rank()
        for row, (uid, prompt, tokens) in enumerate(zip(uids, prompts, responses, strict=True)):
            sample = (uid, tuple(tokens.tolist()) if sessions is None else sessions[row])
            occurred[sample] += 1
            number = self.samples.setdefault((*sample, occurred[sample]), len(self.samples))  # the same in every epoch
            group = group_number(str(uid).encode())
            if not among(group, share) or not columns["trained"][row].any():
                continue
            yield Completion(
                place=(self.rollout, update, group, number * ranks + rank),  # on every rank another
                prompt=prompt,
                tokens=tokens,
                columns={name: column[row, : len(tokens)] for name, column in columns.items()},
                dropped=dropped[row],
                rewards={} if rewards is None else {"reward": float(rewards[row].sum())},
            )


def _token_ids(data: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Prompts and responses of a micro-batch, without padding."""
    prompts, responses = data["prompts"], data["responses"]
    if prompts.is_nested:
        return list(prompts.unbind()), list(responses.unbind())
    widths = [prompts.shape[1], responses.shape[1]]
    rows = zip(prompts, responses, *data["attention_mask"].bool().split(widths, 1), strict=True)
    without = [(prompt[there], response[here]) for prompt, response, there, here in rows]
    return [prompt for prompt, _ in without], [response for _, response in without]


def _padded(column: Tensor, length: int) -> Tensor:
    """(B, length), of a nested tensor or of one that verl padded further."""
    rows = column.to_padded_tensor(0) if column.is_nested else column
    return torch.nn.functional.pad(rows[:, :length], (0, max(0, length - rows.shape[1])))


def _place(data: Any, config: Any) -> tuple[int, int, bool]:
    """How many ranks hold rows of their own, which of them this one's are, and whether it is the one that writes."""
    ranks = int(tensordict_utils.get(data, "dp_size", 1))
    if config.strategy == "megatron":
        from megatron.core import mpu

        first = mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_context_parallel_rank() == 0
        return ranks, mpu.get_data_parallel_rank(), first
    place, copy = divmod(dist.get_rank(), dist.get_world_size() // ranks)
    return ranks, place, copy == 0

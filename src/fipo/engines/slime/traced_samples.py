"""Traces from slime: what the loss used, of chosen completions, and what slime's rollout data say of them.

A micro-batch does not say which samples it holds. A hook on the rollout's data does, and knows them again by the
tensors of their tokens, which are the same objects. miles gives its hook no data: there samples are identified by their
prompts, and have no rewards.
"""

import sys
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from fipo.core.credit import TokenCredit
from fipo.engines.slime.arguments import params_of, trace_options, updates_of, weighting_of
from fipo.engines.slime.contract import slime_function
from fipo.engines.slime.layout import whole_responses
from fipo.errors import InvalidParameterError
from fipo.traces.columns import trace_columns
from fipo.traces.writer import Completion, TraceWriter, among, costs_no_run, group_number

SEEN = "fipo_traced"  # in a micro-batch: --recompute-loss-function asks twice


class Traces:
    """This process' part in the traces of a run: which rollout and update is under way, and what is to be written."""

    def __init__(self) -> None:
        self.rollout, self.update = -1, 0  # −1: no hook was called
        self.micro_batches = self.samples = 0  # of the rollout on this process, so far
        self.known: dict[int, tuple[Any, ...]] = {}  # see `note`
        self.writer: TraceWriter | None = None
        self.warned: set[str] = set()
        self.unreported: int | None = None  # the last traced rollout, until its report is logged

    def note(self, args: Namespace, data: dict[str, Any]) -> None:
        """What a rollout's data, right before it is trained on, say of the samples of this process: by the identity of
        the tokens' tensor, which is kept so that no other takes it, place and group in the rollout, reward, truncation.
        """
        rewards, truncated, size = data.get("raw_reward"), data.get("truncated"), args.n_samples_per_prompt
        whole = rewards is not None and len(rewards) == args.rollout_batch_size * size  # else groups differ in size
        self.known = {
            id(tokens): (
                tokens,
                place,
                place // size if whole else None,
                float(rewards[place]) if rewards and isinstance(rewards[place], int | float) else None,  # or several
                bool(truncated[row]) if truncated is not None else None,
            )
            for row, (tokens, place) in enumerate(zip(data["tokens"], data["partition"], strict=True))
        }

    def start(self, rollout: int, update: int) -> None:
        """An update begins; with a rollout's first, all ranks have written the traces of the rollout before."""
        self.rollout, self.update = rollout, update
        if update == 0:
            self.micro_batches = self.samples = 0
            self._log_report()

    @torch.no_grad()
    def see(
        self,
        args: Namespace,
        batch: dict[str, Any],
        credit: TokenCredit,
        trained: Tensor,
        columns: dict[str, Tensor],
        lengths: list[int],
    ) -> None:
        """Writes the chosen completions of a micro-batch, if its rollout is traced: of this rank's (N,) `credit`,
        `trained` and the `columns` of `trace_columns`, its sequences' parts having these `lengths`. Raises an
        InvalidParameterError where slime does not say which rollout it trains on."""
        options = trace_options(args)
        if options is None or SEEN in batch:
            return
        if self.rollout < 0:
            raise InvalidParameterError(
                "fipo_trace_dir is set, but slime does not call fipo before its updates; set "
                "custom_megatron_before_train_step_hook_path to fipo.engines.slime.before_train_step."
            )
        batch[SEEN] = True
        if not options.due(self.rollout):
            return
        share = options.samples / (args.rollout_batch_size * args.n_samples_per_prompt)
        lengths_of = zip(batch["unconcat_tokens"], batch["response_lengths"], strict=True)
        prompts = [tokens[: len(tokens) - response] for tokens, response in lengths_of]
        groups = [group_number(str(prompt.tolist()).encode()) for prompt in prompts]  # the same on every rank
        chosen = [row for row, group in enumerate(groups) if among(group, share)]
        here = trace_columns(credit, trained, (args.eps_clip, args.eps_clip_high), **columns)
        whole = dict(zip(chosen, whole_responses(batch, chosen, here, lengths), strict=True))
        mpu = slime_function("mpu")
        if mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_context_parallel_rank() == 0:
            if self.writer is None:
                how: Any = {"options": options, "tokenizer": args.hf_checkpoint, "params": params_of(args)}
                how |= {"rank": mpu.get_data_parallel_rank(), "ranks": mpu.get_data_parallel_world_size()}
                how |= {"log_ratio_error": args.fipo_log_ratio_error}
                self.writer = TraceWriter(**how, weighting=weighting_of(args))
            dropped = credit.dropped.tolist()
            rows = (self._completion(batch, row, groups[row], whole[row], dropped[row]) for row in chosen)
            self.writer.write(self.rollout, self.micro_batches, rows)
            self.unreported = self.rollout
            if self.rollout + 1 == getattr(args, "num_rollout", None) and self.update + 1 == updates_of(args):
                self._log_report()  # no hook is called after it: what other ranks still write is not in
        self.micro_batches, self.samples = self.micro_batches + 1, self.samples + len(groups)

    def _log_report(self) -> None:
        """Logs the report about the last traced rollout's credit, once, where W&B tracks the run in this process."""
        rollout, self.unreported = self.unreported, None
        if rollout is not None and self.writer is not None and "wandb" in sys.modules:
            with costs_no_run("No report was logged to W&B", self.warned):
                from fipo.report.tracking import log_credit, running_wandb

                log_credit(self.writer.options.folder, rollout, running_wandb(), **{"rollout/step": rollout})

    def _completion(
        self, batch: dict[str, Any], row: int, group: int, columns: dict[str, Tensor], dropped: bool
    ) -> Completion:
        mpu, tokens = slime_function("mpu"), batch["unconcat_tokens"][row]
        own = (self.samples + row) * mpu.get_data_parallel_world_size() + mpu.get_data_parallel_rank()
        _, place, number, reward, truncated = self.known.get(id(tokens), (tokens, own, None, None, None))
        prompt = len(tokens) - batch["response_lengths"][row]
        return Completion(
            place=(self.rollout, self.update, group if number is None else number, place),
            prompt=tokens[:prompt],
            tokens=tokens[prompt:],
            columns=columns,
            dropped=dropped,
            rewards={} if reward is None else {"reward": reward},
            truncated=truncated,
        )


TRACES = Traces()

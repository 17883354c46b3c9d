"""Traces from slime: what the loss used, of chosen completions, and what slime's rollout data tell of them.

A micro-batch does not say which samples it holds. A hook on the rollout's data does, and knows them again by the
tensors of their tokens, which are the same objects. miles gives its hook no data: there samples are told apart by their
prompts, and have no rewards.
"""

import logging
import sys
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fipo.core.credit import TokenCredit
from fipo.engines.slime.arguments import params_of, trace_options, updates_of, weighting_of
from fipo.engines.slime.contract import slime_function
from fipo.engines.slime.layout import whole_responses
from fipo.errors import InvalidParameterError
from fipo.traces.columns import trace_columns
from fipo.traces.writer import Completion, TraceOptions, TraceWriter, among, costs_no_run, group_number

logger = logging.getLogger(__name__)

POSTPROCESS_PATH = "fipo.engines.slime.note_rollout"
SEEN = "fipo_traced"  # in a micro-batch: --recompute-loss-function asks twice


@dataclass(frozen=True, slots=True)
class Sample:
    """What the rollout's data tell of a sample."""

    tokens: Tensor  # kept, so that no other tensor takes its identity
    group: int
    place: int  # in the rollout
    reward: float | None
    truncated: bool | None


class Traces:
    """This process' part in the traces of a run: which rollout and update is under way, and what is to be written."""

    def __init__(self) -> None:
        self.rollout, self.update = -1, 0  # −1: no hook told
        self.micro_batches = self.samples = 0  # of the rollout on this process, so far
        self.known: dict[int, Sample] = {}  # by the identity of the tokens' tensor
        self.writer: TraceWriter | None = None
        self.told: set[str] = set()
        self.unreported: int | None = None  # the last traced rollout, until its report is logged

    def note(self, args: Namespace, data: dict[str, Any]) -> None:
        """What a rollout's data, right before it is trained on, tell of the samples of this process."""
        rewards, size = data.get("raw_reward"), args.rollout_batch_size * args.n_samples_per_prompt
        self.known.clear()
        for row, (tokens, place) in enumerate(zip(data["tokens"], data["partition"], strict=True)):
            whole = rewards is not None and len(rewards) == size  # else prompts have unequal numbers of samples
            prompt = tokens[: len(tokens) - data["response_lengths"][row]]
            self.known[id(tokens)] = Sample(
                tokens,
                group=place // args.n_samples_per_prompt if whole else _group_of(prompt),
                place=place,
                reward=_number(rewards[place]) if rewards is not None else None,
                truncated=bool(data["truncated"][row]) if "truncated" in data else None,
            )

    def start(self, rollout: int, update: int) -> None:
        """An update begins; with a rollout's first, all ranks have written the traces of the rollout before."""
        self.rollout, self.update = rollout, update
        if update == 0:
            self.micro_batches = self.samples = 0
            if self.unreported is not None:
                self._log_report(self.unreported)
            self.unreported = None

    @torch.no_grad()
    def see(
        self,
        args: Namespace,
        batch: dict[str, Any],
        credit: TokenCredit,
        trained: Tensor,
        columns: dict[str, list[Tensor]],
    ) -> None:
        """Writes the chosen completions of a micro-batch, if its rollout is traced.

        Args:
            args, batch: As for the loss.
            credit: Of this rank's part of the micro-batch, (N,).
            trained: (N,) bool.
            columns: logps, old_logps, advantages, entropy and, where π_old is not the rollout engine's, rollout_logps;
                one tensor a sequence, of this rank's tokens.

        Raises:
            InvalidParameterError: Traces are asked for, but slime does not say which rollout it trains on.
        """
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
        sequences = zip(batch["unconcat_tokens"], batch["response_lengths"], strict=True)
        samples = [self._sample(tokens, length) for tokens, length in sequences]
        chosen = [row for row, sample in enumerate(samples) if self._is_chosen(sample, args, options)]
        lengths, others = [len(part) for part in columns["logps"]], {n: torch.cat(c) for n, c in columns.items()}
        here = trace_columns(credit, trained, (args.eps_clip, args.eps_clip_high), **others)
        whole = dict(zip(chosen, whole_responses(batch, chosen, here, lengths), strict=True))
        mpu = slime_function("mpu")
        if mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_context_parallel_rank() == 0:
            if self.writer is None:
                self.writer = _writer(args, options)
            dropped = credit.dropped.view(len(samples), -1)[:, 0].tolist()  # all chunks of a sequence say the same
            rows = (self._completion(samples[row], whole[row], dropped[row]) for row in chosen)
            self.writer.write(self.rollout, self.micro_batches, rows)
            self.unreported = self.rollout
            if self._is_last_update(args):  # no hook is called after it: what other ranks still write is not in
                self._log_report(self.rollout)
        self.micro_batches += 1

    def _log_report(self, rollout: int) -> None:
        """Logs the report about this rollout's credit, where W&B tracks the run in this process."""
        if self.writer is not None and "wandb" in sys.modules:
            with costs_no_run("No report was logged to W&B", self.told):
                from fipo.report.tracking import log_credit, running_wandb

                log_credit(self.writer.options.folder, rollout, running_wandb(), **{"rollout/step": rollout})

    def _is_last_update(self, args: Namespace) -> bool:
        return self.rollout + 1 == getattr(args, "num_rollout", None) and self.update + 1 == updates_of(args)

    def _sample(self, tokens: Tensor, response: int) -> Sample:
        """What is known of the sample with these tokens; without the rollout's data a number of its own."""
        mpu = slime_function("mpu")
        own = self.samples * mpu.get_data_parallel_world_size() + mpu.get_data_parallel_rank()
        self.samples += 1
        known = self.known.get(id(tokens))
        if known is not None and known.tokens is tokens:
            return known
        return Sample(tokens, _group_of(tokens[: len(tokens) - response]), own, None, None)

    def _is_chosen(self, sample: Sample, args: Namespace, options: TraceOptions) -> bool:
        """Whole groups from all over the rollout, and so from all its updates."""
        groups, share = args.rollout_batch_size, options.samples / (args.rollout_batch_size * args.n_samples_per_prompt)
        if sample.group != sample.place // args.n_samples_per_prompt:  # numbered by their prompts
            return among(sample.group, share)
        wanted = max(1, options.samples // args.n_samples_per_prompt)
        return wanted >= groups or sample.group * wanted % groups < wanted

    def _completion(self, sample: Sample, columns: dict[str, Tensor], dropped: bool) -> Completion:
        prompt = len(sample.tokens) - len(columns["trained"])
        return Completion(
            place=(self.rollout, self.update, sample.group, sample.place),
            prompt=sample.tokens[:prompt],
            tokens=sample.tokens[prompt:],
            columns=columns,
            dropped=dropped,
            rewards={} if sample.reward is None else {"reward": sample.reward},
            truncated=sample.truncated,
        )


TRACES = Traces()


def note_rollout(args: Namespace, rollout_id: int | None = None, rollout_data: dict[str, Any] | None = None) -> None:
    """For slime's --rollout-data-postprocess-path: calls the user's own, then notes what traces show of samples."""
    own = getattr(args, "fipo_next_postprocess_path", None)
    if own is not None:
        given = () if rollout_data is None else (rollout_id, rollout_data)
        slime_function("load_function")(own)(args, *given)
    if rollout_data is None or trace_options(args) is None:
        return
    try:
        TRACES.note(args, rollout_data)
    except Exception as error:  # of data that another function made
        TRACES.known.clear()
        logger.warning(f"Traces have no rewards, and the run goes on: slime's rollout data are unusual ({error!r}).")


def install_postprocess(args: Namespace) -> None:
    """Where traces are asked for, makes slime call `note_rollout`, and that the user's own, if there is one."""
    own = getattr(args, "rollout_data_postprocess_path", None)
    if trace_options(args) is not None and own != POSTPROCESS_PATH:
        args.fipo_next_postprocess_path, args.rollout_data_postprocess_path = own, POSTPROCESS_PATH


def _writer(args: Namespace, options: TraceOptions) -> TraceWriter:
    mpu = slime_function("mpu")
    return TraceWriter(
        options=options,
        tokenizer=args.hf_checkpoint,
        params=params_of(args),
        rank=mpu.get_data_parallel_rank(),
        ranks=mpu.get_data_parallel_world_size(),
        weighting=weighting_of(args),
    )


def _group_of(prompt: Tensor) -> int:
    return group_number(str(prompt.tolist()).encode())


def _number(reward: Any) -> float | None:
    """None for what is no number, such as a dict of several rewards."""
    return float(reward) if isinstance(reward, int | float) else None

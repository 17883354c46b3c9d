"""Traces from training: which completions, into which files, and that they cost no run.

What an engine's loss sees becomes `Completion`s here. The rest of `fipo.traces`, which needs pyarrow, is imported when
the first is written.
"""

import fcntl
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
from zlib import crc32

import torch
from torch import Tensor

from fipo.core.rules import Weighting
from fipo.errors import InvalidParameterError
from fipo.params import FIPOParams, Knob
from fipo.run_folder import TRACES_FOLDER, place_of, trace_file

logger = logging.getLogger(__name__)

TRACE_SETTINGS = {  # what TraceOptions.of reads, and what it means
    "trace_dir": "A folder for traces of token credit; nothing is traced without it.",
    "trace_every": "Trace every so many rollouts. Default 8.",
    "trace_samples": "Trace about so many completions of such a rollout, in whole groups. Default 64.",
}
FROM_ONE = Knob(default=1, low=1)
KINDS = {"trained": torch.bool, "flags": torch.uint8}  # columns that are no float32
GROUPS = 2**31  # as many numbers of groups as a trace can hold


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """Where traces go, of which rollouts, and of about how many completions of each.

    Raises:
        InvalidParameterError: A value is not one.
    """

    folder: Path
    every: int = 8
    samples: int = 64

    def __post_init__(self) -> None:
        for name in ("every", "samples"):
            FROM_ONE.checked(f"trace_{name}", getattr(self, name))

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "TraceOptions | None":
        """Out of `trace_dir`, `trace_every` and `trace_samples`; None without a trace_dir."""
        if not settings.get("trace_dir"):
            return None
        if not isinstance(settings["trace_dir"], str):
            raise InvalidParameterError(f"trace_dir is {settings['trace_dir']!r}, but must be a folder; name one.")
        given: dict[str, Any] = {name: settings.get(f"trace_{name}") for name in ("every", "samples")}
        return cls(Path(settings["trace_dir"]), **{name: value for name, value in given.items() if value is not None})

    @property
    def run(self) -> str:
        """The run's name: the folder's, or the one's around a folder that is called traces."""
        folder = self.folder.absolute()
        return folder.parent.name if folder.name == TRACES_FOLDER else folder.name

    def due(self, rollout: int) -> bool:
        return rollout % self.every == 0


def group_number(of: bytes) -> int:
    """The same number on every rank for the completions of one prompt, where the trainer gives groups no number."""
    return crc32(of) % GROUPS


def among(group: int, share: float) -> bool:
    """Whether this `group_number` is of the given share of all: whole groups, the same on every rank."""
    return group < share * GROUPS


@dataclass(slots=True, kw_only=True)
class Completion:
    """One completion of T tokens at one update; tensors are (T,), on any device, without gradient."""

    place: tuple[int, int, int, int]  # rollout, update, group, sample
    prompt: Tensor  # token ids
    tokens: Tensor  # token ids
    columns: dict[str, Tensor]  # from `trace_columns`
    dropped: bool
    rewards: dict[str, float] = field(default_factory=dict)  # by name
    reward: float | None = None  # their total; of one it is that one
    truncated: bool | None = None


@dataclass(slots=True, kw_only=True)
class TraceWriter:
    """Writes one process' completions; what fails there costs the traces, with a warning, and not the run."""

    options: TraceOptions
    tokenizer: Any  # as `byte_decoder` takes it
    params: FIPOParams
    rank: int = 0  # of the processes that write
    ranks: int = 1  # how many do
    updates_per_rollout: int | None = None  # as `write_traces` takes it
    weighting: Weighting | None = None  # what took the place of FIPO's weights
    log_ratio_error: float | None = None  # as `write_traces` takes it
    takes_folder: bool = True  # the folder is this run's alone, and begins where the run does
    _bytes_of: Callable[[int], bytes] | None = None
    _warned: set[str] = field(default_factory=set)
    _lock: TextIO | None = None  # of this rank's place in the folder, held as long as the process lives
    _off: bool = False

    def write(self, rollout: int, step: int, completions: Iterable[Completion]) -> None:
        """Writes one file, whole or not at all, with the completions of one micro-batch, if there are any."""
        if self._off:
            return
        name = trace_file(rollout, step, self.rank)
        with costs_no_run(f"{name} was not written", self._warned):
            from fipo.traces import write_traces

            if self.takes_folder and self._lock is None:
                self._begin(rollout)
            of_run: Any = {"updates_per_rollout": self.updates_per_rollout}
            of_run |= {"log_ratio_error": self.log_ratio_error}
            of_run |= {"control": None if self.weighting is None else self.weighting.name}
            if rows := list(completions):
                write_traces(self._traces(rows), self.options.folder / name, self.params, **of_run)

    def _begin(self, rollout: int) -> None:
        """Takes this rank's place in the folder, and removes what an earlier start left of this and later rollouts.

        Raises:
            FileExistsError: The process of another run has the place; nothing more is traced.
        """
        folder = self.options.folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f".rank_{self.rank}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            self._off = True
            raise FileExistsError(f"another run writes into {folder}; give each run a trace_dir of its own.") from None
        self._lock = lock
        for path in folder.iterdir():
            number, _, rank = place_of(path.name) or (-1, 0, 0)
            mine = rank == self.rank or (self.rank == 0 and rank >= self.ranks)
            if mine and number >= rollout:
                path.unlink(missing_ok=True)

    def _traces(self, completions: Iterable[Completion]) -> Iterable[Any]:
        from fipo.traces.schema import Trace

        bytes_of = self._decoder()
        for one in completions:
            known: Any = dict(zip(("rollout", "update", "group", "sample"), one.place, strict=True))
            known |= {n: column.to(KINDS.get(n, torch.float32)).cpu().numpy() for n, column in one.columns.items()}
            known |= {"rewards": one.rewards, "dropped": one.dropped, "truncated": one.truncated}
            yield Trace(
                **known,
                run=self.options.run,
                prompt=b"".join(map(bytes_of, one.prompt.tolist())).decode(errors="replace"),
                token_ids=one.tokens.int().cpu().numpy(),
                token_bytes=[bytes_of(index) for index in one.tokens.tolist()],
                reward=next(iter(one.rewards.values()), None) if one.reward is None else one.reward,
                stop_reason="" if one.truncated is None else ("length" if one.truncated else "stop"),
            )

    def _decoder(self) -> Callable[[int], bytes]:
        """The bytes of a token; its id in brackets, after a warning, where the tokenizer cannot be had."""
        if self._bytes_of is None:
            from fipo.traces.tokens import byte_decoder, in_brackets

            self._bytes_of = in_brackets
            with costs_no_run("Traces show tokens as their ids", self._warned):
                self._bytes_of = byte_decoder(self.tokenizer)
        return self._bytes_of


@contextmanager
def costs_no_run(lost: str, warned: set[str]) -> Iterator[None]:
    """Around what may fail: an error becomes a warning that says what is lost, once a cause; `warned` holds these."""
    try:
        yield
    except Exception as error:
        cause = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
        if cause not in warned:
            warned.add(cause)
            logger.warning(f"{lost}, and the run goes on: {cause}")

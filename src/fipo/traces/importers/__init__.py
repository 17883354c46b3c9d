"""Other stacks' dumps as traces. What a dump does not record stays None; they neither guess nor unpickle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fipo.errors import DataError
from fipo.params import FIPOParams
from fipo.traces.importers import prime_rl, slime
from fipo.traces.store import TraceSet
from fipo.traces.tokens import byte_decoder, in_brackets

IMPORTERS: dict[str, Callable[..., TraceSet]] = {"slime": slime.read, "prime-rl": prime_rl.read}


def import_dump(
    kind: str, source: Path, *, tokenizer: Any = None, params: FIPOParams | None = None, current_logprobs: bool = False
) -> TraceSet:
    """Reads a dump; `problems` of what it returns says what could not be recovered or read.

    Args:
        kind: "slime": a folder with both debug dumps, `rollout_*.pt` and `train_*.pt`. "prime-rl": a file
            `rank_*.jsonl`, or a folder of them, as `token_exports`.
        source: Where it is.
        tokenizer: A fast Hugging Face tokenizer, or its name or folder, for token bytes; without it, tokens show as
            their ids.
        params: The hyper-parameters of the weights; without them fipo's defaults, and a sentence that says so.
        current_logprobs: slime only: `log_probs` are the current policy's, and `rollout_log_probs` π_old's.

    Raises:
        DataError: The kind is unknown, the tokenizer cannot be loaded, or nothing could be read.
    """
    if kind not in IMPORTERS:
        raise DataError(f"The kind of dump is {kind!r}, but must be one of {', '.join(IMPORTERS)}; choose one.")
    if not source.exists():
        raise DataError(f"{source} does not exist; check the path.")
    of_slime = {"current_logprobs": current_logprobs} if kind == "slime" else {}
    found = IMPORTERS[kind](source, byte_decoder(tokenizer) if tokenizer else in_brackets, params, **of_slime)
    if not found.traces:
        why = "; ".join(found.problems) or "it has no file of that kind"
        raise DataError(f"{source} holds no {kind} dump that could be read: {why.removesuffix('.')}.")
    if params is None and any(trace.weight is not None for trace in found):
        found.problems.append(
            "The dump does not record its hyper-parameters, so the weights are with fipo's defaults; give a preset."
        )
    return found

"""Traces as columns that are small in an HTML report: typed arrays over all traces, gzipped, in base64.

The report recomputes future_kl and FIPO's weights from the log-ratios, so they are left out where log_ratio is known.
Log-ratios are exact (float32). Log-probabilities and entropies are float16: they are only shown, to four digits.
"""

import base64
import gzip
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from fipo.params import FIPOParams
from fipo.traces import FLAGS, Trace, TraceSet

TRAINED = 128  # the bit of the `flags` column that FLAGS leaves free for Trace.trained
COLUMNS = {  # column → its dtype; a trace that lacks one has no entries there
    "tokens": "<u4",  # index into the vocabulary
    "flags": "u1",
    "log_ratio": "<f4",
    "advantages": "<f4",  # only of traces whose advantage differs between tokens
    "old_logps": "<f2",
    "entropy": "<f2",
    "future_kl": "<f4",  # this and logps: only of traces without log_ratio
    "weight": "<f4",  # likewise, and where a control replaced FIPO's weights
    "logps": "<f2",
    "true_advantage": "<f4",
    "mismatch": "<f4",  # log π_old less what the rollout engine said; 0 where not trained
}


def pack_traces(sets: list[tuple[str, TraceSet]]) -> dict[str, str]:
    """The report's data blocks: name → base64 text.

    Args:
        sets: Label and traces of every run.

    Returns:
        `traces`, a JSON index with a line for every trace, one block for every column, and the vocabulary.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    sizes = dict.fromkeys(COLUMNS, 0)
    vocabulary: dict[tuple[int, bytes], int] = {}
    prompts: dict[str, int] = {}
    names = _run_names(sets)
    index = []
    for number, (_, traces) in enumerate(sets):
        for trace in traces:
            found = _columns(trace, vocabulary, controlled=traces.control is not None)
            starts = {}
            for name, values in found.items():
                starts[name] = sizes[name]
                sizes[name] += len(values)
                columns[name].append(values)
            line = {"set": number, "run": names[number, trace.run], "at": starts}
            index.append(line | _facts(trace) | {"prompt": prompts.setdefault(trace.prompt, len(prompts))})
    knobs = [asdict(traces.params or FIPOParams()) | {"known": traces.params is not None} for _, traces in sets]
    head = {
        "traces": index,
        "prompts": list(prompts),
        "params": knobs,
        "controls": [traces.control for _, traces in sets],
        "labels": [label for label, _ in sets],
        "updates": [traces.updates_per_rollout for _, traces in sets],
        "flags": FLAGS,
        "trained": TRAINED,
    }
    blocks = {"traces": pack_json(head), **_pack_vocabulary(vocabulary)}
    for name, kind in COLUMNS.items():
        if columns[name]:
            blocks[name] = pack_array(np.concatenate(columns[name]).astype(kind))
    return blocks


def pack_json(value: Any) -> str:
    """Any JSON value, packed."""
    return pack_text(json.dumps(_finite(value), allow_nan=False))


def pack_text(text: str) -> str:
    """Base64 of gzip: no character of it can end a script element."""
    return _pack(text.encode())


def pack_array(values: np.ndarray) -> str:
    """First every entry's lowest byte, then every entry's next one: sign and exponent bytes then compress."""
    planes = np.ascontiguousarray(values).view("u1").reshape(len(values), values.itemsize)
    return _pack(np.ascontiguousarray(planes.T).tobytes())


def _pack(raw: bytes) -> str:
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


def _columns(trace: Trace, vocabulary: dict[tuple[int, bytes], int], *, controlled: bool) -> dict[str, np.ndarray]:
    pairs = zip(trace.token_ids.tolist(), trace.token_bytes, strict=True)
    tokens = [vocabulary.setdefault(pair, len(vocabulary)) for pair in pairs]
    flags = np.zeros(len(tokens), "u1") if trace.flags is None else trace.flags.astype("u1")
    found = {"tokens": np.array(tokens, "u4"), "flags": flags | np.where(trace.trained, TRAINED, 0).astype("u1")}
    log_ratio, old_logps = trace.log_ratio, trace.old_logps
    if log_ratio is None and trace.logps is not None and old_logps is not None:
        log_ratio = np.where(trace.trained, trace.logps - old_logps, 0)
    if old_logps is None and trace.logps is not None and log_ratio is not None:
        old_logps = trace.logps - log_ratio
    optional = {"log_ratio": log_ratio, "old_logps": old_logps, "entropy": trace.entropy}
    optional["true_advantage"] = trace.true_advantage
    if log_ratio is None:
        optional |= {"future_kl": trace.future_kl, "logps": trace.logps}
    if log_ratio is None or controlled:
        optional["weight"] = trace.weight
    if old_logps is not None and trace.rollout_logps is not None:
        optional["mismatch"] = np.where(trace.trained, old_logps - trace.rollout_logps, 0)
    if _one_advantage(trace) is None:
        optional["advantages"] = trace.advantages
    with np.errstate(over="ignore"):
        return found | {name: values.astype(COLUMNS[name]) for name, values in optional.items() if values is not None}


def _facts(trace: Trace) -> dict[str, Any]:
    return {
        "rollout": trace.rollout,
        "update": trace.update,
        "group": trace.group,
        "sample": trace.sample,
        "reward": trace.reward,
        "rewards": trace.rewards,
        "dropped": trace.dropped,
        "truncated": trace.truncated,
        "stop_reason": trace.stop_reason,
        "length": len(trace.token_ids),
        "advantage": _one_advantage(trace),
        "sign": _sign(trace),
        "anyFlags": 0 if trace.flags is None else int(np.bitwise_or.reduce(trace.flags, initial=0)),
    }


def _one_advantage(trace: Trace) -> float | None:
    """The advantage that every trained token has; None if they differ or nobody knows."""
    if trace.advantages is None:
        return None
    values = trace.advantages[trace.trained]
    same = len(values) > 0 and np.isfinite(values[0]) and bool((values == values[0]).all())
    return float(values[0]) if same else None


def _sign(trace: Trace) -> int | None:
    if trace.advantages is None or not trace.trained.any():
        return None
    mean = float(trace.advantages[trace.trained].mean())
    return int(np.sign(mean)) if math.isfinite(mean) else None


def _pack_vocabulary(vocabulary: dict[tuple[int, bytes], int]) -> dict[str, str]:
    return {
        "vocabulary_ids": pack_array(np.array([index for index, _ in vocabulary], "<i4")),
        "vocabulary_ends": pack_array(np.cumsum([len(piece) for _, piece in vocabulary]).astype("<u4")),
        "vocabulary_bytes": _pack(b"".join(piece for _, piece in vocabulary)),
    }


def _run_names(sets: list[tuple[str, TraceSet]]) -> dict[tuple[int, str], str]:
    """What the report calls a trace's run: its own name, with the label of its file where two runs share one."""
    pairs = {(number, trace.run): label for number, (label, traces) in enumerate(sets) for trace in traces}
    own = {pair: pair[1] or label for pair, label in pairs.items()}
    shared = {name for name in own.values() if _occurs_twice(name, own.values())}
    return {pair: f"{name} ({pairs[pair]})" if name in shared else name for pair, name in own.items()}


def _occurs_twice(name: str, names: Iterable[str]) -> bool:
    return sum(other == name for other in names) > 1


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: an infinite knob becomes the text "inf", every other such number null."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value == math.inf else None
    return value

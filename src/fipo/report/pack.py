"""Traces as columns that are small in an HTML report: typed arrays over all traces, gzipped, in base64.

The report recomputes future_kl and FIPO's weights from the log-ratios, so they are left out where log_ratio is known.
Log-ratios are exact (float32). Log-probabilities and entropies are float16: they are only shown, to four digits.
"""

import base64
import gzip
import json
import math
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from fipo.errors import DataError
from fipo.params import FIPOParams
from fipo.report.channels import CHANNELS
from fipo.traces import FLAGS, Trace, TraceSet
from fipo.traces.analysis import analyze

TRAINED = 128  # the bit of the `flags` column that FLAGS leaves free for Trace.trained
COLUMNS = {  # column → its dtype; a trace that lacks one has no entries there
    "tokens": "<u4",  # index into the vocabulary
    "flags": "u1",
    "advantages": "<f4",  # only of traces whose advantage differs between tokens
    "old_logps": "<f2",
    "logps": "<f2",  # only of traces without log_ratio
} | {channel.name: channel.dtype for channel in CHANNELS if channel.dtype}
Vocabulary = dict[tuple[int, bytes], int]  # id and bytes of a token → its place


def pack_traces(sets: list[tuple[str, TraceSet]]) -> dict[str, str]:
    """The report's data blocks, name → base64 text, for the label and the traces of every run.

    `traces` is a JSON index with a line for every trace; there is a block for every column, and the vocabulary.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    sizes = dict.fromkeys(COLUMNS, 0)
    vocabulary: Vocabulary = {}
    prompts: dict[str, int] = {}
    # A run is called by its own name, with the label of its file where two runs share one.
    own = {(number, trace.run): trace.run or label for number, (label, traces) in enumerate(sets) for trace in traces}
    times = Counter(own.values())
    names = {pair: f"{name} ({sets[pair[0]][0]})" if times[name] > 1 else name for pair, name in own.items()}
    index = []
    for number, (_, traces) in enumerate(sets):
        for trace in traces:
            starts = {}
            for name, values in _columns(trace, vocabulary, controlled=traces.control is not None).items():
                starts[name] = sizes[name]
                sizes[name] += len(values)
                columns[name].append(values)
            line = {"set": number, "run": names[number, trace.run], "at": starts}
            index.append(line | _facts(trace) | {"prompt": prompts.setdefault(trace.prompt, len(prompts))})
    head = {
        "traces": index,
        "prompts": list(prompts),
        "sets": [_made(label, traces) for label, traces in sets],
        "channels": [asdict(replace(channel, values=None)) for channel in CHANNELS],
        "flags": FLAGS,
        "trained": TRAINED,
        "columns": COLUMNS,
    }
    blocks = {name: pack_array(np.concatenate(parts)) for name, parts in columns.items() if parts}
    return blocks | {
        "traces": pack_json(head),
        "vocabulary_ids": pack_array(np.array([index for index, _ in vocabulary], "<i4")),
        "vocabulary_ends": pack_array(np.cumsum([len(piece) for _, piece in vocabulary]).astype("<u4")),
        "vocabulary_bytes": _pack(b"".join(piece for _, piece in vocabulary)),
    }


def pack_json(value: Any) -> str:
    """Any JSON value, packed."""
    return pack_text(json.dumps(_finite(value), allow_nan=False))


def pack_text(text: str) -> str:
    """Base64 of gzip: no character of it can end a script element."""
    return _pack(text.encode())


def pack_array(values: np.ndarray) -> str:
    """First every entry's lowest byte, then every entry's next one: sign and exponent bytes then compress."""
    return _pack(values.view("u1").reshape(len(values), values.itemsize).T.tobytes())


def _pack(raw: bytes) -> str:
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


def _columns(trace: Trace, vocabulary: Vocabulary, *, controlled: bool) -> dict[str, np.ndarray]:
    pairs = zip(trace.token_ids.tolist(), trace.token_bytes, strict=True)
    tokens = np.array([vocabulary.setdefault(pair, len(vocabulary)) for pair in pairs], "u4")
    flags = np.zeros(len(tokens), "u1") if trace.flags is None else trace.flags
    found = {channel.name: channel.of(trace) for channel in CHANNELS if channel.dtype}
    found |= {"tokens": tokens, "flags": flags | np.where(trace.trained, TRAINED, 0).astype("u1")}
    found |= {"advantages": trace.advantages, "old_logps": trace.old_logps, "logps": trace.logps}
    if trace.log_ratio is None and trace.logps is not None and trace.old_logps is not None:
        found["log_ratio"] = np.where(trace.trained, trace.logps - trace.old_logps, 0)
    if found["log_ratio"] is not None:
        found |= dict.fromkeys(["future_kl", "logps"] if controlled else ["future_kl", "logps", "weight"])
    if _advantage(trace)["advantage"] is not None:
        found["advantages"] = None
    with np.errstate(over="ignore"):
        return {name: values.astype(COLUMNS[name]) for name, values in found.items() if values is not None}


def _facts(trace: Trace) -> dict[str, Any]:
    names = ("rollout", "update", "group", "sample", "reward", "rewards", "dropped", "truncated", "stop_reason")
    return {name: getattr(trace, name) for name in names} | {
        "length": len(trace.token_ids),
        "anyFlags": 0 if trace.flags is None else int(np.bitwise_or.reduce(trace.flags, initial=0)),
        **_advantage(trace),
    }


def _advantage(trace: Trace) -> dict[str, Any]:
    """The advantage of every trained token, and the sign of their mean; None where they differ, or are unknown."""
    values = np.empty(0) if trace.advantages is None else trace.advantages[trace.trained].astype("f8")
    if not len(values) or not math.isfinite(mean := float(values.mean())):
        return {"advantage": None, "sign": None}
    return {"advantage": float(values[0]) if (values == values[0]).all() else None, "sign": int(np.sign(mean))}


def _made(label: str, traces: TraceSet) -> dict[str, Any]:
    """What is known of a run's traces as a whole."""
    try:
        analysis = analyze(traces)
    except DataError as error:
        analysis = {"warnings": [str(error)]}
    about = {"label": label, "control": traces.control, "updates": traces.updates_per_rollout, "analysis": analysis}
    return about | {"knobs": asdict(traces.params or FIPOParams()), "known": traces.params is not None}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: an infinite knob becomes the text "inf", every other such number null."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value == math.inf else None
    return value

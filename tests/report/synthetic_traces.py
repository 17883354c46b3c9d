"""Traces for the report's tests: text that looks like reasoning, with every mark somewhere."""

import numpy as np

from fipo import FIPOParams
from fipo.traces import FLAGS, Trace

TEXT = "First , let me add the numbers . 17 + 25 = 42 . Wait , check again : 40 + 2 = 42 . However , so the answer is"
WORDS = TEXT.split()


def completion(length, rng):
    pieces = [b" " + WORDS[i].encode() for i in rng.integers(0, len(WORDS), length)]
    for t in range(19, length, 20):
        pieces[t] = b"\n"
    return pieces


def trace(sample=0, length=60, pieces=None, spread=0.06, group_size=4, **changes):
    rng = np.random.default_rng(1000 * changes.get("update", 0) + sample)
    pieces = completion(length, np.random.default_rng(sample)) if pieces is None else pieces
    length = len(pieces)
    trained = np.ones(length, bool)
    trained[length // 2 : length // 2 + 3] = False
    log_ratio = np.where(trained, rng.normal(scale=spread, size=length), 0).astype("float32")
    flags = np.zeros(length, "uint8")
    if length > 30:
        log_ratio[7] = 2.5  # beyond dual_clip_c
        log_ratio[9] = 1.5  # beyond the safety threshold of the preset "7b"
        flags[7], flags[11], flags[12], flags[13] = FLAGS["outside"], 4, 8, 16
    old_logps = (-rng.exponential(size=length)).astype("float32")
    reward = float(sample % 3 == 0)
    values = {
        "token_ids": np.array([hash_of(piece) for piece in pieces], "int32"),
        "token_bytes": pieces,
        "trained": trained,
        "run": "run",
        "group": sample // group_size,
        "sample": sample,
        "prompt": "What is 17 + 25?",
        "old_logps": old_logps,
        "logps": old_logps + log_ratio,
        "log_ratio": log_ratio,
        "advantages": np.full(length, 0.75 if reward else -0.5, "float32"),
        "entropy": rng.exponential(size=length).astype("float32"),
        "flags": flags,
        "reward": reward,
        "rewards": {"math": reward},
        "dropped": False,
        "truncated": False,
        "stop_reason": "stop",
    }
    return Trace(**{**values, **changes})


def hash_of(piece):
    return sum(piece[:64]) % 50_000


PARAMS = FIPOParams.preset("7b", decay_rate=16.0)

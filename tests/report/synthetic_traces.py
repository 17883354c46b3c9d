"""Runs for the report's tests: text that looks like reasoning, with every mark somewhere, and metrics."""

import json

import numpy as np

from fipo import FIPOParams
from fipo.traces import FLAGS, Trace

TEXT = "First , let me add the numbers . 17 + 25 = 42 . Wait , check again : 40 + 2 = 42 . However , so the answer is"
WORDS = TEXT.split()
HOSTILE = [
    b"</script><script>window.hacked=1</script>", b"<!--", b"<img src=https://example.com/x onerror=window.hacked=1>",
    "\u202eabc".encode(), b"\xff", b"\xe2", b"\x82", b"\xac", "\u200b".encode(), b"\x00\x1b[31m", b"\xed\xa0\x80",
    b"\xc3", b"(", b"\t", b"\n", "שלום".encode(), "e\u0301".encode(), b"x" * 1_000_000, b"",
]  # fmt: skip


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
    values = {"token_ids": np.array([hash_of(piece) for piece in pieces], "int32"), "token_bytes": pieces}
    values |= {"run": "run", "group": sample // group_size, "sample": sample, "prompt": "What is 17 + 25?"}
    values |= {"trained": trained, "log_ratio": log_ratio, "old_logps": old_logps, "logps": old_logps + log_ratio}
    values |= {"advantages": np.full(length, 0.75 if reward else -0.5, "float32"), "flags": flags}
    values |= {"entropy": rng.exponential(size=length).astype("float32")}
    mismatch = np.random.default_rng(sample).normal(scale=0.01, size=length).astype("float32")
    values |= {"rollout_logps": old_logps + mismatch, "true_advantage": np.linspace(-0.5, 0.5, length, dtype="float32")}
    values |= {"reward": reward, "rewards": {"math": reward}, "dropped": False, "truncated": False}
    return Trace(**{**values, "stop_reason": "stop", **changes})


def hash_of(piece):
    return sum(piece[:64]) % 50_000


PARAMS = FIPOParams.preset("7b", decay_rate=16.0)


def write_metrics(folder, offset=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"fipo/weight_mean": 1, "fipo/weight_min": 0.8, "fipo/weight_max": 1.2}
    lines = [{"step": step, "reward": step / 10 + offset} | weights for step in range(8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder

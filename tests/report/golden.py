"""What fipo computes and packs, for the front end's unit tests: `python tests/report/golden.py` writes it to FILE.

The inputs are formulas, not random numbers, so that every version of NumPy makes the same file.
"""

import base64
import gzip
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from synthetic_traces import trace

from fipo import FIPOParams, fipo_loss, future_kl
from fipo.core.rounding import future_kl_errors
from fipo.params import KNOBS
from fipo.report.pack import pack_json, pack_traces
from fipo.traces import Trace, TraceSet

FILE = Path(__file__).parents[1] / "web" / "golden.json"
LENGTH = 24
KNOBS_TRIED = [
    {},
    {"decay_rate": 2.0, "clip_ratio_high": 0.5, "safety_thresh": 2.0},
    {"decay_rate": float("inf"), "clip_high_only": True},
    {"distance": "trained", "clip_ratio_low": 0.6, "dual_clip_c": 1.5, "safety_thresh": 1.2},
    {"distance": "trained", "decay_rate": 3.0, "dual_clip_c": float("inf"), "safety_thresh": 1.0},
]
PIECES = [b" So", b"\xe2\x82", b"\xac", b"\n", b"", b" Wait", b"42"]
HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC01, 0x3555, 0x7BFF, 0xFC00]  # subnormal, largest, −∞, …


def golden():
    """The content of golden.json. Infinities are the text "inf"."""
    halves = np.array(HALVES, "<u2").view("<f2").astype(float)
    return {
        "credit": [credit(knobs) for knobs in KNOBS_TRIED],
        "halves": [[bits, str(value)] for bits, value in zip(HALVES, halves, strict=True)],
        "blocks": blocks(),
        "traces": [told(one) for one in packed_traces()],
    }


def credit(knobs):
    """FIPO's columns for one row; every knob, the safety rule and the limit of log-ratios matter somewhere in it."""
    params = FIPOParams(**knobs)
    log_ratio = torch.tensor([(7 * t * t % 13 - 6) / 20 for t in range(LENGTH)], dtype=torch.float64)[None]
    log_ratio[0, 5], log_ratio[0, 12], log_ratio[0, 16], log_ratio[0, 20] = 2.5, 0.8, -25.0, 1.5
    trained = torch.tensor([t % 7 not in (3, 4) for t in range(LENGTH)])[None]
    advantages = torch.tensor([-1.0 if t > 8 else 0.5 for t in range(LENGTH)], dtype=torch.float64)[None]
    out = fipo_loss(log_ratio, 0 * log_ratio, advantages, trained, params)
    found = {"knobs": {name: "inf" if value == float("inf") else value for name, value in asdict(params).items()}}
    found |= {"logRatio": log_ratio[0].tolist(), "trained": trained[0].int().tolist()}
    found |= {"advantages": advantages[0].tolist(), "futureKl": future_kl(log_ratio, trained, params)[0].tolist()}
    found |= {"futureKlErrors": future_kl_errors(trained, 0.25, params)[0].tolist()}
    return found | {"weight": out.weight[0].tolist()}


def packed_traces():
    """One trace with all columns, one whose advantage differs between tokens, an imported one, an empty one."""
    steps = np.arange(len(PIECES), dtype="float32")
    log_ratio = (steps**2 % 5 - 2) / 4
    known = {
        "pieces": PIECES, "log_ratio": log_ratio, "old_logps": -steps / 3, "logps": log_ratio - steps / 3,
        "entropy": steps / 7, "advantages": np.full(len(PIECES), -0.5, "float32"),
    }  # fmt: skip
    yield trace(0, **known)
    yield trace(1, **{**known, "advantages": steps / 4 - 1})
    imported = {"log_ratio": None, "old_logps": None, "logps": None, "future_kl": steps, "weight": steps / 2}
    yield trace(2, **{**known, **imported})
    nothing = np.zeros(0, "float32")
    yield trace(3, **dict.fromkeys(known, nothing) | {"pieces": []})


def blocks():
    knobs = {name: asdict(knob) | {"help": name} for name, knob in KNOBS.items()}
    about = {"title": "golden", "problems": [], "version": "0", "knobs": knobs}
    sets = [("demo", TraceSet(list(packed_traces()), FIPOParams(decay_rate=float("inf"))))]
    packed = pack_traces(sets)
    head = json.loads(gzip.decompress(base64.b64decode(packed["traces"])))
    head["sets"][0]["analysis"] = {"warnings": []}  # its last digits differ between machines
    return packed | {"about": pack_json(about), "traces": pack_json(head)}


def told(one: Trace):
    """What the front end must find, taken from the trace itself; null for a column that it must not have."""
    columns = {"log_ratio": listed(one.log_ratio), "true_advantage": listed(one.true_advantage)}
    columns |= {name: listed(getattr(one, name), "float16") for name in ("old_logps", "entropy")}
    recorded = one.log_ratio is None
    columns |= {name: listed(getattr(one, name)) if recorded else None for name in ("future_kl", "weight")}
    pieces, trained = [piece.hex() for piece in one.token_bytes], one.trained.astype(int).tolist()
    known = {"bytes": pieces, "ids": one.token_ids.tolist(), "trained": trained, "advantages": listed(one.advantages)}
    return known | {"columns": columns}


def listed(values, dtype="float32"):
    return None if values is None else values.astype(dtype).astype(float).tolist()


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden()) + "\n", encoding="utf-8")

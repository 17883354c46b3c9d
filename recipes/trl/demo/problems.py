"""Writes train.jsonl and held_out.jsonl: sums of three numbers, each behind three that are worked out."""

import json
import random
from itertools import product
from pathlib import Path

SHOWN = [(4, 3, 5), (8, 6, 7), (9, 2, 4)]
HELD_OUT = 40


def worked_out(a: int, b: int, c: int) -> str:
    return f"{a} + {b} + {c} -> {a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}\n"


def problem(a: int, b: int, c: int) -> dict[str, str]:
    shown = "".join(worked_out(*terms) for terms in SHOWN)
    return {"prompt": f"{shown}{a} + {b} + {c} ->", "answer": str(a + b + c)}


def main() -> None:
    problems = [terms for terms in product(range(2, 10), repeat=3) if terms not in SHOWN]
    random.Random(0).shuffle(problems)
    parts = {"held_out": problems[:HELD_OUT], "train": problems[HELD_OUT:]}
    for name, rows in parts.items():
        lines = [json.dumps(problem(*terms)) + "\n" for terms in rows]
        (Path(__file__).parent / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()

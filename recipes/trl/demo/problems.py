"""Writes train.jsonl and held_out.jsonl: sums of three numbers, each behind two that are worked out."""

import json
import random
from itertools import accumulate, pairwise, product
from pathlib import Path

SHOWN = [(4, 3, 5), (6, 5, 2)]
HELD_OUT = 40


def question(terms: tuple[int, ...]) -> str:
    return " + ".join(map(str, terms)) + " ->"


def worked_out(terms: tuple[int, ...]) -> str:
    totals = pairwise(accumulate(terms))
    steps = [f"{before} + {term} = {after}" for (before, after), term in zip(totals, terms[1:], strict=True)]
    return f"{question(terms)} {', '.join(steps)}\n"


def problem(terms: tuple[int, ...]) -> dict[str, str]:
    return {"prompt": "".join(map(worked_out, SHOWN)) + question(terms), "answer": str(sum(terms))}


def main() -> None:
    problems = [terms for terms in product(range(2, 7), repeat=3) if terms not in SHOWN]
    random.Random(0).shuffle(problems)
    parts = {"held_out": problems[:HELD_OUT], "train": problems[HELD_OUT:]}
    for name, rows in parts.items():
        lines = [json.dumps(problem(terms)) + "\n" for terms in rows]
        (Path(__file__).parent / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()

"""`fipo test-reward`: what a recipe's rewards say of given completions."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fipo.errors import DataError
from fipo.run.arguments import Parser
from fipo.run.rewards import TAKEN, as_completion, load_rewards
from fipo.terminal import printable


def score_file(recipe: dict[str, Any], flags: list[str], completions: Path) -> int:
    """Prints a table of scores; returns 1 if a reward raised.

    `completions` is JSONL: `completion`, and whatever the rewards read, such as `answer`. A line may hold
    `completion_ids`; without them a completion counts as many tokens as it has words.
    """
    values = Parser().values(recipe, flags)  # alone: the trainer's own checks may want a GPU
    rewards = load_rewards(values.rewards, max_completion_length=values.max_completion_length)
    rows = _read(completions)
    names = {name for row in rows for name in row} - {"prompt", "completion", "completion_ids"}
    if taken := TAKEN & names:
        raise DataError(f"{completions} has the key {min(taken)}, but rewards get something else under it; rename it.")
    columns = {name: [row.get(name) for row in rows] for name in names}
    prompts = [row.get("prompt", []) for row in rows]
    texts = [as_completion(row["completion"], prompt) for row, prompt in zip(rows, prompts, strict=True)]
    ids = [row.get("completion_ids") or row["completion"].split() for row in rows]
    scores = [reward(texts, ids, prompts=prompts, **columns) for reward in rewards]

    table = Table(*["completion", "answer"], *[reward.__name__ for reward in rewards], "total")
    for index, row in enumerate(rows):
        line = [column[index] for column in scores]
        failed = [reward.failed[index] for reward in rewards]
        total = sum(reward.weight * score for reward, score in zip(rewards, line, strict=True) if score is not None)
        cells = map(_shown, [*line, total], [*failed, any(failed)])
        shown = (printable(repr(row["completion"])[:60]), printable(str(row.get("answer", ""))))
        table.add_row(*(escape(text) for text in shown), *cells)
    Console().print(table)
    return int(any(reward.failures for reward in rewards))


def _shown(score: float | None, failed: bool) -> str:
    if failed:
        return "failed"
    return "–" if score is None else f"{score:.3g}"  # None: the reward does not apply


def _read(path: Path) -> list[dict]:
    if not path.is_file():
        raise DataError(f"The file {path} does not exist; check the path.")
    rows = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"The file {path} is not text in UTF-8 ({error}); convert it.") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"Line {number} of {path} is not JSON ({error}); repair it.") from error
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str):
            raise DataError(f"Line {number} of {path} has no text in `completion`; add it.")
        if not isinstance(row.get("completion_ids", []), list):
            raise DataError(f"Line {number} of {path} has completion_ids that are no list of numbers; repair it.")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has no lines, but test-reward needs completions; write some.")
    return rows

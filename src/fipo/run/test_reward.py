"""`fipo test-reward`: what a recipe's rewards say of given completions."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fipo.errors import DataError
from fipo.messages import printable
from fipo.run.arguments import Parser
from fipo.run.data import read_source
from fipo.run.rewards import TAKEN, as_completion, load_rewards


def score_file(recipe: dict[str, Any], flags: list[str], completions: Path) -> int:
    """Prints a table of scores; returns 1 if a reward raised.

    `completions` is JSONL: `completion`, and whatever the rewards read, such as `answer`. A line may hold
    `completion_ids`; without them a completion counts as many tokens as it has words.
    """
    values = Parser().values(recipe, flags)  # alone: the trainer's own checks may want a GPU
    rewards = load_rewards(values.rewards, max_completion_length=values.max_completion_length)
    rows = read_source(str(completions)).to_list()
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("completion"), str) or not isinstance(row.get("completion_ids") or [], list):
            raise DataError(
                f"Row {number} of {completions} needs a text `completion` and a list `completion_ids`, if any."
            )
    names = rows[0].keys() - {"prompt", "completion", "completion_ids"}
    columns = {name: [row[name] for row in rows] for name in names}
    if taken := TAKEN & names:
        raise DataError(f"{completions} has the key {min(taken)}, which is something else to TRL; rename it.")
    prompts = [row.get("prompt") or [] for row in rows]
    texts = [as_completion(row["completion"], prompt) for row, prompt in zip(rows, prompts, strict=True)]
    ids = [row.get("completion_ids") or row["completion"].split() for row in rows]
    scores = [reward(texts, ids, prompts=prompts, **columns) for reward in rewards]

    table = Table(*["completion", "answer"], *[reward.__name__ for reward in rewards], "total")
    for index, row in enumerate(rows):
        shown = [printable(repr(row["completion"])[:60]), printable(str(row.get("answer", "")))]
        line = [column[index] for column in scores]
        failed = [reward.failed[index] for reward in rewards]
        total = sum(reward.weight * score for reward, score in zip(rewards, line, strict=True) if score is not None)
        for score, is_failed in zip([*line, total], [*failed, any(failed)], strict=True):
            shown.append("failed" if is_failed else "–" if score is None else f"{score:.3g}")  # –: does not apply
        table.add_row(*map(escape, shown))
    Console().print(table)
    return int(any(reward.failures for reward in rewards))

"""Prompts from the hub, from a local file, or from a procedural task of reasoning-gym."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from pyarrow import parquet

from fipo.errors import DataError
from fipo.run.rewards import TAKEN
from fipo.run.sources import ENDINGS, PROCEDURAL, ending_of, file_of, task_of
from fipo.terminal import one_line

READERS = {".jsonl": "json", ".tsv": "csv", ".txt": "text"}  # of datasets, for other endings than their names
CHUNK = 2**20  # characters


def load_prompts(
    source: str,
    *,
    config: str | None = None,
    split: str = "train",
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    seed: int = 0,
) -> Dataset:
    """A dataset with text or chat messages in `prompt`, as the source has them, `answer`, and its other columns.

    Args:
        source: `rg:task?option=value` (1,000 questions unless `size` is given), a .jsonl, .json, .csv, .tsv, .txt or
            .parquet file, or a dataset's name on the Hugging Face hub.
        config: Which configuration of a hub dataset.
        split: Which split of a hub dataset.
        prompt_column: Holds text or chat messages.
        answer_column: Holds the answer; empty where no reward needs one.
        seed: Of a procedural task, unless its options name one.

    Raises:
        DataError: No such source, split or column, or no rows.
    """
    dataset = read_source(source, config, split, seed)
    if not len(dataset):
        raise DataError(f"{source} has no rows, but training needs prompts; check the file or the split {split!r}.")
    if prompt_column not in dataset.column_names:
        raise DataError(
            f"{source} has no column {prompt_column!r}, only {dataset.column_names}; name the prompt's column with "
            "prompt_column."
        )
    if answer_column and answer_column not in dataset.column_names:
        raise DataError(
            f"{source} has no column {answer_column!r}, only {dataset.column_names}; name the answer's column with "
            "answer_column, or set it to an empty text if no reward needs one."
        )
    if prompt_column == answer_column:
        raise DataError(f"prompt_column and answer_column are both {prompt_column}, but must differ; change one.")
    if pictures := {"image", "images"} & set(dataset.column_names):
        raise DataError(f"{source} has the column {pictures.pop()}, but fipo train reads text alone; remove it.")
    if taken := TAKEN & set(dataset.column_names) - {prompt_column, answer_column}:
        raise DataError(
            f"{source} has the column {taken.pop()}, but rewards get something else under that name; rename it."
        )
    named = {prompt_column: "prompt", **({answer_column: "answer"} if answer_column else {})}
    replaced = {"prompt", *named.values()} & set(dataset.column_names) - named.keys()
    dataset = dataset.remove_columns(list(replaced)).rename_columns(named)
    _require_prompts(dataset, source)
    return dataset


def read_source(source: str, config: str | None = None, split: str = "train", seed: int = 0) -> Dataset:
    """The rows of a task of reasoning-gym, of a file or of a hub dataset, as they are.

    Raises:
        DataError: No such source or split.
    """
    return _procedural(source, seed) if source.startswith(PROCEDURAL) else _stored(source, config, split)


def _require_prompts(dataset: Dataset, source: str) -> None:
    try:
        prompts = list(dataset["prompt"])
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not text in UTF-8 ({error}); convert it.") from error
    for prompt in prompts:
        _require_prompt(prompt, source)
    if len({isinstance(prompt, str) for prompt in prompts}) > 1:
        raise DataError(f"{source} has prompts that are text and prompts that are chat messages; choose one of both.")


def _require_prompt(prompt: Any, source: str) -> None:
    if isinstance(prompt, str) or _is_chat(prompt):
        return
    hint = " (readers of CSV make numbers of what looks like one)" if isinstance(prompt, int | float) else ""
    raise DataError(
        f"{source} has the prompt {str(prompt)[:80]}, but prompts are text or a list of chat messages with role and "
        f"content, both text; convert it{hint}."
    )


def _is_chat(prompt: Any) -> bool:
    messages = prompt if isinstance(prompt, list) else []
    return bool(messages) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in messages
    )


def _stored(source: str, config: str | None, split: str) -> Dataset:
    path = file_of(source)
    if path is not None:
        ending = ending_of(path)
        with _failing_as(f"{source} cannot be read as {ending[1:]}", "repair the file"):
            return _read(path, READERS.get(ending, ending[1:]), {"sep": "\t"} if ending == ".tsv" else {})
    remedy = f"name a hub dataset, a {', '.join(ENDINGS)} file, or {PROCEDURAL}task"
    with _failing_as(f"The dataset {source!r} with split {split!r} cannot be loaded", remedy):
        return load_dataset(source, config, split=split)


@contextmanager
def _failing_as(what: str, remedy: str) -> Iterator[None]:
    """Around the readers, which raise many kinds, and tell the cause in another."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{what} ({one_line(error.__cause__ or error)}); {remedy}.") from error


def _read(path: Path, reader: str, options: dict[str, Any]) -> Dataset:
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty, but training needs prompts; write at least one row.")
    if reader == "parquet" and not parquet.read_metadata(path).num_rows:  # load_dataset fails without naming it
        raise DataError(f"{path} has no rows, but training needs prompts; write at least one.")
    if reader != "parquet":
        _require_utf8(path)
    return load_dataset(reader, data_files=str(path), split="train", **options)


def _require_utf8(path: Path) -> None:
    """The reader of JSON lets other encodings pass, and the first look at a text fails."""
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        while file.read(CHUNK):
            pass


def _procedural(source: str, seed: int) -> Dataset:
    import reasoning_gym

    name, options = task_of(source)
    try:
        task = reasoning_gym.create_dataset(name, **{"size": 1000, "seed": seed, **options})
    except (TypeError, ValueError, AssertionError) as error:
        raise DataError(f"reasoning-gym's {name} does not take {options} ({error}); change them.") from error
    return Dataset.from_list(
        [
            {
                "prompt": entry["question"],
                "answer": str(entry["answer"]),
                "reasoning_gym": json.dumps(entry, default=str),
            }
            for entry in task
        ]
    )

"""Prompts from the hub, from a local file, or from a procedural task of reasoning-gym."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from fipo.errors import DataError
from fipo.run.recipe import name_and_options
from fipo.run.rewards import TAKEN
from fipo.terminal import did_you_mean, nearest_file, one_line

READERS = {  # ending, .gz may follow → reader of datasets, and its options
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".txt": ("text", {}),
    ".parquet": ("parquet", {}),
}
PROCEDURAL = "rg:"


def load_prompts(
    source: Any,
    *,
    config: str | None = None,
    split: str = "train",
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    seed: int = 0,
) -> Dataset:
    """A dataset with text or chat messages in `prompt`, as the source has them, `answer`, and its other columns.

    Args:
        source: `rg:task` or `{rg:task: {option: value}}` (1,000 questions unless `size` is given), a .jsonl, .json,
            .csv, .tsv, .txt or .parquet file, or a dataset's name on the Hugging Face hub.
        config: Which configuration of a hub dataset.
        split: Which split of a hub dataset.
        prompt_column: Holds text or chat messages.
        answer_column: Holds the answer; empty where no reward needs one.
        seed: Of a procedural task, unless its options name one.

    Raises:
        DataError: No such source, split or column, or no rows.
    """
    dataset = read_source(source, config, split, seed)
    for key, column in (("prompt_column", prompt_column), ("answer_column", answer_column)):
        if column not in dataset.column_names and (column or key == "prompt_column"):
            raise DataError(
                f"{source} has no column {column!r}, only {dataset.column_names}; name it with {key}"
                + (", or set that to an empty text if no reward needs answers." if key == "answer_column" else ".")
            )
    if prompt_column == answer_column:
        raise DataError(f"prompt_column and answer_column are both {prompt_column}, but must differ; change one.")
    if pictures := {"image", "images"} & set(dataset.column_names):
        raise DataError(f"{source} has the column {pictures.pop()}, but fipo train reads text alone; remove it.")
    if taken := TAKEN & set(dataset.column_names) - {prompt_column, answer_column}:
        raise DataError(
            f"{source} has the column {min(taken)}, but rewards get something else under that name; rename it."
        )
    named = {prompt_column: "prompt", **({answer_column: "answer"} if answer_column else {})}
    replaced = {"prompt", *named.values()} & set(dataset.column_names) - named.keys()
    dataset = dataset.remove_columns(list(replaced)).rename_columns(named)
    _require_prompts(dataset, source)
    return dataset


def read_source(source: Any, config: str | None = None, split: str = "train", seed: int = 0) -> Dataset:
    """The rows of a task of reasoning-gym, of a file or of a hub dataset, as they are.

    Raises:
        DataError: No such source or split, or no rows.
    """
    name, options = name_and_options(source, "dataset")
    if name.startswith(PROCEDURAL):
        dataset = _procedural(name.removeprefix(PROCEDURAL), options, seed)
    else:
        dataset = _stored(name, config, split)
    if not len(dataset):
        raise DataError(f"{name} has no rows, but training needs prompts; check the file or the split {split!r}.")
    return dataset


def _stored(source: str, config: str | None, split: str) -> Dataset:
    path = Path(source)
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ending in READERS and not path.is_file():
        raise DataError(f"The dataset file {source} does not exist; {nearest_file(path)}")
    if ending not in READERS and (path.is_file() or _must_be_local(path, source)):
        found = "is a file of an unknown kind" if path.is_file() else "does not exist"
        raise DataError(f"The dataset {source} {found}; name a file that ends in {', '.join(READERS)}.")
    try:
        if ending in READERS:
            reader, options = READERS[ending]
            dataset = load_dataset(reader, data_files=str(path), split="train", **options)
            dataset.data.table.validate(full=True)  # the reader of JSON lets other encodings than UTF-8 pass
            return dataset
        return load_dataset(source, config, split=split)
    except Exception as error:  # readers raise many kinds, and say the cause in another
        what, reason = ending[1:] if ending in READERS else f"a dataset with split {split!r}", error.__cause__ or error
        raise DataError(f"{source} cannot be read as {what} ({one_line(reason)}); repair or rename it.") from error


def _must_be_local(path: Path, source: str) -> bool:
    return not path.is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1)


def _procedural(name: str, options: dict[str, Any], seed: int) -> Dataset:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        known = f"choose one of {', '.join(sorted(DATASETS))}."
        raise DataError(f"reasoning-gym has no task {name!r}; {did_you_mean(name, DATASETS, known)}")
    try:
        task = reasoning_gym.create_dataset(name, **{"size": 1000, "seed": seed, **options})
        rows = list(task)
    except Exception as error:  # each task checks its options in its own way, some when the first question is made
        raise DataError(f"reasoning-gym's {name} does not take {options} ({one_line(error)}); change them.") from error
    return Dataset.from_list(
        [
            {"prompt": row["question"], "answer": str(row["answer"]), "reasoning_gym": json.dumps(row, default=str)}
            for row in rows
        ]
    )


def _require_prompts(dataset: Dataset, source: Any) -> None:
    prompts = list(dataset["prompt"])
    for prompt in prompts:
        if not isinstance(prompt, str) and not _is_chat(prompt):
            hint = " (readers of CSV make numbers of what looks like one)" if isinstance(prompt, int | float) else ""
            raise DataError(
                f"{source} has the prompt {str(prompt)[:80]}, but prompts are text or a list of chat messages with "
                f"role and content, both text; convert it{hint}."
            )
    if len({isinstance(prompt, str) for prompt in prompts}) > 1:
        raise DataError(f"{source} has prompts that are text and prompts that are chat messages; choose one of both.")


def _is_chat(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
            for message in prompt
        )
    )

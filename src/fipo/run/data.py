"""Prompts from the hub, from a local file, or from a procedural task of reasoning-gym."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from fipo.errors import DataError
from fipo.run.specs import Spec, typed

FORMATS = {  # ending → reader and its options; .gz may follow
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".txt": ("text", {}),
    ".parquet": ("parquet", {}),
}
PROCEDURAL = "rg:"


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
    dataset = _procedural(source, seed) if source.startswith(PROCEDURAL) else _stored(source, config, split)
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
    if answer_column and answer_column != "answer":
        dataset = dataset.remove_columns(list({"answer"} & set(dataset.column_names)))
        dataset = dataset.rename_column(answer_column, "answer")
    if pictures := {"image", "images"} & set(dataset.column_names):
        raise DataError(f"{source} has the column {pictures.pop()}, but fipo train reads text alone; remove it.")
    prompts = list(dataset[prompt_column])
    for prompt in prompts:
        _require_prompt(prompt, source)
    dataset = dataset.remove_columns(list({prompt_column, "prompt"} & set(dataset.column_names)))
    return dataset.add_column("prompt", prompts)


def _require_prompt(prompt: Any, source: str) -> None:
    if isinstance(prompt, str) or _is_chat(prompt):
        return
    hint = ", for readers of CSV make numbers of what looks like one" if isinstance(prompt, int | float) else ""
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
    path = Path(source)
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ending in FORMATS:
        if not path.is_file():
            raise DataError(f"The dataset file {source} does not exist; check the path.")
        if path.stat().st_size == 0:
            raise DataError(f"{source} is empty, but training needs prompts; write at least one row.")
        reader, options = FORMATS[ending]
        try:
            return load_dataset(reader, data_files=str(path), split="train", **options)
        except Exception as error:  # the readers raise many kinds, and tell the cause in another
            reason = " ".join(str(error.__cause__ or error).split())
            raise DataError(f"{source} cannot be read as {ending[1:]} ({reason}); repair the file.") from error
    if path.is_file() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        found = "is a file of an unknown kind" if path.is_file() else "does not exist"
        raise DataError(f"The dataset {source} {found}; name a file that ends in {', '.join(FORMATS)}.")
    try:
        return load_dataset(source, config, split=split)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, ValueError) as error:
        raise DataError(
            f"The dataset {source!r} with split {split!r} cannot be loaded ({error}); name a hub dataset, a "
            f"{', '.join(FORMATS)} file, or {PROCEDURAL}task."
        ) from error


def _procedural(source: str, seed: int) -> Dataset:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    spec = Spec.parse(source.removeprefix(PROCEDURAL))
    if spec.name not in DATASETS:
        raise DataError(f"reasoning-gym has no task {spec.name!r}; choose one of {', '.join(sorted(DATASETS))}.")
    options = typed(spec.options, DATASETS[spec.name][1], f"reasoning-gym's {spec.name}")
    try:
        task = reasoning_gym.create_dataset(spec.name, **{"size": 1000, "seed": seed, **options})
    except (TypeError, ValueError, AssertionError) as error:
        raise DataError(f"reasoning-gym's {spec.name} does not take {options} ({error}); change them.") from error
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

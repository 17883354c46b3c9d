"""Prompts from the hub, from a local file, or from a procedural task of reasoning-gym."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from fipo.errors import DataError
from fipo.run.specs import Spec, typed

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
PROCEDURAL = "rg:"


def load_prompts(
    source: str,
    *,
    config: str | None = None,
    split: str = "train",
    prompt_column: str = "prompt",
    answer_column: str = "answer",
    system_prompt: str | None = None,
    seed: int = 0,
) -> Dataset:
    """A dataset with chat messages in `prompt`, text in `answer`, and the source's other columns.

    Args:
        source: `rg:task?option=value` (1,000 questions unless `size` is given), a .jsonl, .json, .csv or .parquet
            file, or a dataset's name on the Hugging Face hub.
        config: Which configuration of a hub dataset.
        split: Which split of a hub dataset.
        prompt_column: Holds text or chat messages.
        answer_column: Holds the answer; empty where no reward needs one.
        system_prompt: Put before every prompt that has no system message of its own.
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
    prompts = [_messages(value, system_prompt, source) for value in dataset[prompt_column]]
    dataset = dataset.remove_columns(list({prompt_column, "prompt"} & set(dataset.column_names)))
    return dataset.add_column("prompt", prompts)


def _messages(prompt: Any, system_prompt: str | None, source: str) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    elif _is_chat(prompt):
        messages = prompt
    else:
        raise DataError(
            f"{source} has the prompt {str(prompt)[:80]}, but prompts are text or a list of chat messages with role "
            "and content; convert it."
        )
    if system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system_prompt}, *messages]
    return messages


def _is_chat(prompt: Any) -> bool:
    messages = prompt if isinstance(prompt, list) else []
    return bool(messages) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)


def _stored(source: str, config: str | None, split: str) -> Dataset:
    path = Path(source)
    if path.suffix in FORMATS:
        if not path.is_file():
            raise DataError(f"The dataset file {source} does not exist; check the path.")
        if path.stat().st_size == 0:
            raise DataError(f"{source} is empty, but training needs prompts; write at least one row.")
        try:
            return load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
        except Exception as error:  # the readers raise many kinds
            raise DataError(f"{source} cannot be read as {path.suffix[1:]} ({error}); repair the file.") from error
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

"""Prompts from the hub, from a local file, or from a procedural task of reasoning-gym."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, List, Value, concatenate_datasets, load_dataset

from fipo.errors import DataError
from fipo.messages import did_you_mean, nearest_file, one_line
from fipo.run.answers import answers_of
from fipo.run.recipe import name_and_options
from fipo.run.rewards import TAKEN

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text", ".parquet": "parquet"}
PROCEDURAL = "rg:"
OF_THE_PROMPT = frozenset(["image", "images", "tools"])  # which TRL does not render for a row
OTHER_FORMATS = frozenset(["completion", "chosen", "rejected", "messages"])  # whose rows TRL would take for others


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

    The arguments are those of `read_source`; `answer_column` is empty where no reward needs one. Raises a DataError
    where there is no such thing, or prompts have another form.
    """
    dataset = read_source(source, config, split, seed, texts=[prompt_column, answer_column])
    found = set(dataset.column_names)
    for key, column in (("prompt_column", prompt_column), ("answer_column", answer_column)):
        if column not in found and column.split(".")[0] in found:
            dataset = _with_nested(dataset, column, f"{key} is {column!r}, but {source}")
        elif column not in found and (column or key == "prompt_column"):
            remedy = ", or set that to an empty text if no reward needs answers" if key == "answer_column" else ""
            raise DataError(
                f"{source} has no column {column!r}, only {dataset.column_names}; name it with {key}{remedy}."
            )
    if prompt_column == answer_column:
        raise DataError(f"prompt_column and answer_column are both {prompt_column}, but must differ; change one.")
    if refused := (TAKEN | OF_THE_PROMPT) & found - {prompt_column, answer_column}:
        raise DataError(f"{source} has the column {min(refused)}, which is something else to TRL; remove or rename it.")
    named = {prompt_column: "prompt", **({answer_column: "answer"} if answer_column else {})}
    replaced = ({"prompt", *named.values()} & found - named.keys()) | (OTHER_FORMATS & found - named.keys())
    dataset = dataset.remove_columns(list(replaced)).rename_columns(named)
    _check_answers(dataset, source, answer_column)
    return _with_prompts(dataset, source)


def _with_nested(dataset: Dataset, column: str, problem: str) -> Dataset:
    """With a column of that name for what lies at the dotted path."""
    flat = dataset.flatten()
    if column not in flat.column_names:
        raise DataError(f"{problem} has no {column.partition('.')[2]!r} there; name another column.")
    return concatenate_datasets([dataset, flat.select_columns(column)], axis=1)


def _check_answers(dataset: Dataset, source: Any, column: str) -> None:
    if "answer" not in dataset.column_names or dataset.features["answer"] in (Value("string"), Value("int64")):
        return
    for value in dataset["answer"]:
        try:
            answers_of(value)
        except ValueError as error:
            inner = f", as {column}.{next(iter(value))}" if isinstance(value, dict) and value else ""
            raise DataError(
                f"{source}: the column {column} holds {error}; name the column or what lies in it{inner}."
            ) from error


def _with_prompts(dataset: Dataset, source: Any) -> Dataset:
    """With prompts that are all text or all chat messages, of which JSON text is read."""
    prompts, read = prompts_in(dataset), None
    if all(isinstance(prompt, str) and prompt.lstrip().startswith("[{") for prompt in prompts):  # slime's, verl's
        with suppress(ValueError):
            prompts = read = [json.loads(prompt) for prompt in prompts]
    for prompt in prompts:
        if problem := None if isinstance(prompt, str) else _wrong_in_chat(prompt):
            raise DataError(f"{source} has the prompt {str(prompt)[:80]}, but {problem}.")
    if len({type(prompt) for prompt in prompts}) > 1:
        raise DataError(f"{source} has prompts that are text and prompts that are chat messages; choose one of both.")
    return dataset if read is None else with_prompts(dataset, read)


def prompts_in(dataset: Dataset) -> list[Any]:
    """Its prompts as Python objects. Arrow's own conversion is ten times faster, but does not know JSON in a column."""
    if "Json" in repr(dataset.features["prompt"]):
        return list(dataset["prompt"])
    found: list[Any] = dataset.with_format("arrow")[:]["prompt"].to_pylist()
    return found


def with_prompts(dataset: Dataset, prompts: list[Any]) -> Dataset:
    """The dataset with these chats. `add_column` would pickle every value for a hash, which takes minutes.

    Columns of Arrow give all messages the same keys, inside tool calls too; where they hold more than text, JSON keeps
    each as it is.
    """
    plain = all(isinstance(value, str) for chat in prompts for turn in chat for value in turn.values())
    features = None if plain else Features({"prompt": List(Json())})
    column = Dataset.from_dict({"prompt": prompts}, features=features)
    return concatenate_datasets([dataset.remove_columns("prompt"), column], axis=1)


def _wrong_in_chat(prompt: Any) -> str | None:
    """What is wrong with it as chat messages, and the remedy."""
    if not isinstance(prompt, list) or not prompt or not all(isinstance(turn, dict) for turn in prompt):
        return "prompts are text or a list of chat messages with role and content; convert it"
    for turn in prompt:
        if not isinstance(turn.get("role"), str):
            return "a chat message needs a role, which is text; add it"
        content = turn.get("content")
        if content is None and not turn.get("tool_calls"):
            return "the content of a message is null; give text"
        if content is not None and not isinstance(content, str):
            return "the content of a message must be text; convert it"
    if prompt[-1]["role"] == "assistant":
        return "its last message is the assistant's, so there is nothing to answer; remove that message"
    return None


def read_source(
    source: Any, config: str | None = None, split: str = "train", seed: int = 0, texts: Sequence[str] = ()
) -> Dataset:
    """The rows as they are.

    Args:
        source: `rg:task` or `{rg:task: {option: value}}` (1,000 questions unless `size` is given), a file with one of
            the endings of READERS, or a dataset's name on the Hugging Face hub.
        config, split: Of a hub dataset; of a file's split only a part counts, as in train[:1000].
        seed: Of a procedural task, unless its options name one.
        texts: Columns of CSV and TSV whose cells stay what was written: 007, 1.10, NA.

    Raises a DataError where there is no such source, split or row.
    """
    name, options = name_and_options(source, "dataset")
    task = name.removeprefix(PROCEDURAL)
    dataset = _stored(name, config, split, texts) if task == name else _procedural(task, options, seed)
    if not len(dataset):
        raise DataError(f"{name} has no rows, but training needs prompts; check the file or the split {split!r}.")
    return dataset


def _stored(source: str, config: str | None, split: str, texts: Sequence[str]) -> Dataset:
    path = Path(source)
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    must_be_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if not path.is_file() and (ending in READERS or (must_be_local and not path.is_dir())):
        raise DataError(f"The dataset {source} does not exist; {nearest_file(path)}")
    if path.is_file() and ending not in READERS:
        raise DataError(f"The dataset {source} is of an unknown kind; name a file that ends in {', '.join(READERS)}.")
    try:
        if ending not in READERS:
            return load_dataset(source, config, split=split)
        options: dict[str, Any] = {"sep": "\t"} if ending == ".tsv" else {}
        if READERS[ending] == "csv":
            options["converters"] = dict.fromkeys(texts, str)
        part = f"train{split[split.index('[') :]}" if "[" in split else "train"  # a file has no splits, but has parts
        dataset = load_dataset(READERS[ending], data_files=str(path), split=part, **options)
        dataset.data.table.validate(full=True)  # the reader of JSON lets other encodings than UTF-8 pass
        return dataset
    except Exception as error:  # readers raise many kinds, and say the cause in another
        what, reason = ending[1:] if ending in READERS else f"a dataset with split {split!r}", error.__cause__ or error
        raise DataError(f"{source} cannot be read as {what} ({one_line(reason)}); repair or rename it.") from error


def _procedural(name: str, options: dict[str, Any], seed: int) -> Dataset:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        known = f"choose one of {', '.join(sorted(DATASETS))}."
        raise DataError(f"reasoning-gym has no task {name!r}; {did_you_mean(name, DATASETS, known)}")
    try:
        rows = list(reasoning_gym.create_dataset(name, **{"size": 1000, "seed": seed, **options}))
    except Exception as error:  # each task checks its options in its own way, some when the first question is made
        raise DataError(f"reasoning-gym's {name} does not take {options} ({one_line(error)}); change them.") from error
    whole = [json.dumps(row, default=str) for row in rows]
    questions, answers = [row["question"] for row in rows], [str(row["answer"]) for row in rows]
    return Dataset.from_dict({"prompt": questions, "answer": answers, "reasoning_gym": whole})

"""The prompts of a run: which are trained on, which are held out, and whether they fit."""

import json
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from rich.progress import track
from transformers import PreTrainedModel
from transformers.utils import logging

from fipo.errors import DataError, InvalidParameterError
from fipo.messages import one_line
from fipo.run.arguments import RunArguments
from fipo.run.data import load_prompts, prompts_in, with_prompts
from fipo.trainer.config import FIPOConfig

logger = logging.get_logger(__name__)

NO_SYSTEM_MESSAGE = (
    "system_prompt is set, but the prompts stay text, which has no system message; put it into the prompts."
)
AT_ONCE = 1000  # prompts that are tokenized between two steps of the progress bar


@dataclass(frozen=True)
class Prompts:
    train: Dataset
    held_out: Dataset | None


def prompts_of(run: RunArguments, config: FIPOConfig) -> Prompts:
    """Training and held-out prompts; without an eval_dataset the held-out ones are taken from the training data."""
    if not run.dataset:
        raise InvalidParameterError("dataset is empty, but a run needs prompts; name a file, a hub dataset or rg:task.")
    if run.prompt_format == "text" and run.system_prompt is not None:
        raise InvalidParameterError(NO_SYSTEM_MESSAGE)
    options: dict[str, Any] = {"config": run.dataset_config, "prompt_column": run.prompt_column}
    options["answer_column"] = run.answer_column
    seed = config.seed if config.data_seed is None else config.data_seed
    train = load_prompts(run.dataset, split=run.dataset_split, seed=seed, **options)
    held_out = None
    if run.eval_size and run.eval_dataset:
        held_out = load_prompts(run.eval_dataset, split=run.eval_split, seed=seed + 1, **options)
        held_out = held_out.take(min(run.eval_size, len(held_out)))
    elif run.eval_size and len(train) >= 2:
        parts = train.train_test_split(test_size=min(run.eval_size, -(-len(train) // 5)), seed=0)
        train, held_out = parts["train"], parts["test"]
    if held_out is not None:
        held = {str(prompt) for prompt in prompts_in(held_out)}
        train = _keep(train, [str(prompt) not in held for prompt in prompts_in(train)], "training", "are held out too")
    _require_a_rollout(train, config, f"{run.dataset} leaves", "give more prompts, or lower eval_size,")
    return Prompts(train, held_out)


def _keep(prompts: Dataset, kept: list[bool], name: str, problem: str) -> Dataset:
    if not all(kept):
        logger.warning(f"{kept.count(False)} of {len(kept)} {name} prompts {problem}, and are left out.")
    return prompts.select([place for place, is_kept in enumerate(kept) if is_kept])


def _require_a_rollout(prompts: Dataset, config: FIPOConfig, which: str, remedy: str) -> None:
    needed = config.generation_batch_size // config.num_generations
    if len(prompts) < needed:
        raise DataError(
            f"{which} {len(prompts)} training prompts, but a rollout takes {needed}; {remedy} "
            "per_device_train_batch_size or steps_per_generation."
        )


def ready_for(
    model: PreTrainedModel, tokenizer: Any, prompts: Prompts, run: RunArguments, config: FIPOConfig
) -> Prompts:
    """The prompts in the format that the model takes, those of at most `max_prompt_length` tokens; others are counted.
    Refused is what leaves too few, a format that cannot be had, and more tokens than the model's context.
    """
    most = run.max_prompt_length
    longest = 0

    def fitting(dataset: Dataset, name: str) -> Dataset:
        nonlocal longest
        formatted = _formatted(dataset, run, has_template=tokenizer.chat_template is not None)
        lengths = _lengths(formatted, tokenizer, config)
        if not min(lengths):
            raise DataError(
                f"Row {lengths.index(0)} of the {name} prompts has no tokens, so there is nothing to begin from; "
                "remove what is empty, or repair the chat template."
            )
        longest = max([longest, *(tokens for tokens in lengths if tokens <= most)])
        problem = f"are longer than max_prompt_length ({most} tokens)"
        return _keep(formatted, [tokens <= most for tokens in lengths], name, problem)

    train = fitting(prompts.train, "training")
    held_out = None if prompts.held_out is None else fitting(prompts.held_out, "held-out")
    _require_a_rollout(train, config, f"max_prompt_length ({most}) leaves", "raise it, or lower")
    # A rollout engine silently cuts responses at the model's limit, which looks like a truncated answer.
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = longest + config.max_completion_length
    if limit is not None and tokens > limit:
        raise InvalidParameterError(
            f"The longest prompt and max_completion_length are {tokens} tokens together, but the model's config.json "
            f"allows {limit}; lower max_completion_length, or raise max_position_embeddings in a copy of the model."
        )
    return Prompts(train, held_out or None)


def _formatted(prompts: Dataset, run: RunArguments, *, has_template: bool) -> Dataset:
    first = prompts[0]["prompt"]
    if not isinstance(first, str) and run.prompt_format == "text":
        raise InvalidParameterError("prompt_format is text, but the dataset holds chat messages; set it to auto.")
    stay_text = isinstance(_form(first, run, has_template), str)
    if stay_text and run.system_prompt is not None:
        raise InvalidParameterError(NO_SYSTEM_MESSAGE)
    if not stay_text and not has_template:
        raise InvalidParameterError(
            "The prompts are chat messages, or to become some, but the model's tokenizer has no chat template; name a "
            "Jinja file with chat_template, or a text dataset with prompt_format: text."
        )
    if stay_text:
        return prompts
    given = prompts_in(prompts)
    return with_prompts(prompts, [_form(prompt, run, has_template) for prompt in given])


def forms_of(prompt: Any, run: RunArguments) -> list[Any]:
    """What `ready_for` may make of a prompt as it was read; between text and chat the model's template decides."""
    text, chat = (_form(prompt, run, has_template) for has_template in (False, True))
    return [text] if text == chat else [text, chat]


def _form(prompt: Any, run: RunArguments, has_template: bool) -> Any:
    """Text stays text where it is asked for or no chat template is there; else prompts are chat messages."""
    if isinstance(prompt, str):
        if run.prompt_format == "text" or (run.prompt_format == "auto" and not has_template):
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    messages = [{key: value for key, value in message.items() if value is not None} for message in prompt]
    if run.system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": run.system_prompt})
    return messages


def _lengths(prompts: Dataset, tokenizer: Any, config: FIPOConfig) -> list[int]:
    """In tokens, as TRL tokenizes them; each different prompt is looked at once, since data may repeat them often."""
    given = prompts_in(prompts)
    names = [prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True) for prompt in given]
    different = dict(zip(names, given, strict=True))
    lengths: dict[str, int] = {}
    first, alike = None, True
    for start in track(range(0, len(different), AT_ONCE), "Reading prompts", disable=len(different) <= AT_ONCE):
        some = [*different][start : start + AT_ONCE]
        tokenized = _tokenized([different[name] for name in some], tokenizer, config)
        lengths |= {name: len(ids) for name, ids in zip(some, tokenized, strict=True)}
        first = tokenized[0] if first is None else first
        alike = alike and all(ids == first for ids in tokenized)
    if alike and first and len(different) > 1:
        raise DataError(
            f"The chat template makes the same {len(first)} tokens of all {len(different)} prompts, so the model "
            "would not see the question; repair it, or name another with chat_template."
        )
    return [lengths[name] for name in names]


def _tokenized(prompts: list[Any], tokenizer: Any, config: FIPOConfig) -> list[list[int]]:
    options = {"add_generation_prompt": True, "return_dict": True, **(config.chat_template_kwargs or {})}
    if isinstance(prompts[0], str):
        found: list[list[int]] = tokenizer(prompts)["input_ids"]
        begin = [tokenizer.bos_token_id] * 2
        if (
            begin[0] is not None
            and (twice := next((n for n, ids in enumerate(found) if ids[:2] == begin), None)) is not None
        ):
            raise DataError(
                f"The prompt {_shown(prompts[twice])} begins with {tokenizer.bos_token}, which the tokenizer adds once "
                "more; remove it from the data."
            )
        return found
    marks = [token for token in tokenizer.all_special_tokens if token.strip()]
    for prompt in prompts:
        text = prompt[-1].get("content") or ""
        if mark := next((token for token in marks if token in text), None):
            raise DataError(
                f"The prompt {_shown(text)} holds {mark}, so a chat template was applied to it before; set "
                "prompt_format to text."
            )
    try:
        return tokenizer.apply_chat_template(prompts, **options)["input_ids"]
    except Exception as error:  # templates are programs, and raise what programs raise
        remedy = "repair it, or name another with chat_template"
        raise DataError(f"The chat template cannot be applied to the prompts ({one_line(error)}); {remedy}.") from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}…")

"""The prompts of a run: which are trained on, which are held out, and whether they fit."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from fipo.errors import DataError, InvalidParameterError
from fipo.run.arguments import RunArguments
from fipo.run.data import load_prompts
from fipo.trainer.config import FIPOConfig

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Prompts:
    train: Dataset
    held_out: Dataset | None


def prompts_of(run: RunArguments, config: FIPOConfig) -> Prompts:
    """Training and held-out prompts; without an eval_dataset the held-out ones are taken from the training data."""
    if not run.dataset:
        raise InvalidParameterError(
            "dataset is empty, but training needs prompts; name a file, a hub dataset or rg:task."
        )
    options: dict[str, Any] = {
        "config": run.dataset_config,
        "prompt_column": run.prompt_column,
        "answer_column": run.answer_column,
        "system_prompt": run.system_prompt,
    }
    seed = config.seed if config.data_seed is None else config.data_seed
    train = load_prompts(run.dataset, split=run.dataset_split, seed=seed, **options)
    held_out = None
    if run.eval_size and run.eval_dataset:
        held_out = load_prompts(run.eval_dataset, split=run.eval_split, seed=seed + 1, **options)
        held_out = held_out.select(range(min(run.eval_size, len(held_out))))
        train = _without(train, held_out)
    elif run.eval_size and len(train) >= 2:
        parts = train.train_test_split(test_size=min(run.eval_size, -(-len(train) // 5)), seed=0)
        held_out = parts["test"]
        train = _without(parts["train"], held_out)
    _require_a_rollout(train, config, f"{run.dataset} leaves", "give more prompts, or lower eval_size")
    return Prompts(train, held_out)


def _without(train: Dataset, held_out: Dataset) -> Dataset:
    """The training prompts that are not held out; what is left out is counted."""
    held = {str(prompt) for prompt in held_out["prompt"]}
    rest = train.select([i for i, prompt in enumerate(train["prompt"]) if str(prompt) not in held])
    if len(rest) < len(train):
        logger.warning(f"{len(train) - len(rest)} training prompts are held out too, and are left out of the training.")
    return rest


def _require_a_rollout(prompts: Dataset, config: FIPOConfig, which: str, remedy: str) -> None:
    needed = config.generation_batch_size // config.num_generations
    if len(prompts) < needed:
        raise DataError(
            f"{which} {len(prompts)} training prompts, but a rollout takes {needed}; {remedy}, "
            "per_device_train_batch_size or steps_per_generation."
        )


def short_enough(
    prompts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    run: RunArguments,
    config: FIPOConfig,
    model_config: PretrainedConfig,
) -> Dataset:
    """The prompts of at most `max_prompt_length` tokens; what is left out is counted.

    Raises:
        DataError: Too few are left for a rollout.
        InvalidParameterError: The longest one and a completion exceed the model's context.
    """
    template = config.chat_template_kwargs or {}

    def length(row: dict[str, Any]) -> int:
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True, **template)
        return len(ids["input_ids"])

    lengths = [length(row) for row in prompts]
    fitting = [i for i, tokens in enumerate(lengths) if tokens <= run.max_prompt_length]
    short = prompts.select(fitting)
    if len(short) < len(prompts):
        logger.warning(
            f"{len(prompts) - len(short)} of {len(prompts)} prompts are longer than max_prompt_length "
            f"({run.max_prompt_length} tokens) and left out."
        )
    _require_a_rollout(
        short, config, f"max_prompt_length ({run.max_prompt_length} tokens) leaves", "raise it, or lower"
    )
    _require_room(max(lengths[i] for i in fitting) + (config.max_completion_length or 0), model_config)
    return short


def _require_room(tokens: int, model_config: PretrainedConfig) -> None:
    """A rollout engine cuts responses at the model's limit without a word, which looks like a truncated answer."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise InvalidParameterError(
            f"The longest prompt and max_completion_length are {tokens} tokens together, but the model's config.json "
            f"allows {limit}; lower max_completion_length, or raise max_position_embeddings in a copy of the model."
        )

"""Rollouts by transformers' `generate`: a prompt is read once for all its samples."""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def read_prompts_once(model: PreTrainedModel) -> None:
    """Patches `model.generate`, which would read a prompt again for each of its samples, though TRL puts them side by
    side. Keys and values are shared, and the samples are transformers' own; caches of other kinds stay as they are."""
    generate = model.generate
    shares = True

    @functools.wraps(generate)
    def shared(*args: Any, **kwargs: Any) -> Any:
        nonlocal shares
        if args or not shares or kwargs.keys() != {"input_ids", "attention_mask", "generation_config"}:
            return generate(*args, **kwargs)
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        samples = _samples_of_a_prompt(ids, mask)
        if samples > 1 and ids.shape[1] > 1:
            prompts = {"input_ids": ids[::samples], "attention_mask": mask[::samples]}
            one = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
            cache = generate(**prompts, **one, generation_config=None).past_key_values
            shares = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
            if shares:
                cache.crop(-1)  # the last token is read again, for its logits
                cache.batch_repeat_interleave(samples)
                return generate(**kwargs, past_key_values=cache)
        return generate(**kwargs)

    model.generate = shared


def _samples_of_a_prompt(ids: Tensor, mask: Tensor) -> int:
    """The greatest number of rows that each prompt stands next to itself."""
    _, counts = torch.cat([ids, mask], 1).unique_consecutive(dim=0, return_counts=True)
    return math.gcd(*counts.tolist())

"""A prompt is read once for all its samples, and the samples are transformers' own."""

import pytest
import torch
from peft import LoraConfig
from support import tiny
from support.harness import GROUP, make
from transformers import MistralConfig, MistralForCausalLM


def sampled(trainer, lengths=(3, 7, 7)):
    """Completions of prompts of these lengths, and how many tokens the model read for them."""
    prompts = [list(range(3, 3 + length)) for length in lengths for _ in range(GROUP)]
    read = []
    layer = trainer.model.get_input_embeddings()
    hook = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    torch.manual_seed(0)
    completions, _ = trainer._generate_single_turn(prompts, None, {}, GROUP)
    hook.remove()
    return completions, sum(read)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, target_modules="all-linear")], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prompts_are_read_once_and_samples_stay_the_same(lora, dtype, tmp_path):
    (found, read), (expected, all_read) = (
        sampled(make(tmp_path / str(of_trl), tiny.model().to(dtype), of_trl=of_trl, peft_config=lora))
        for of_trl in (False, True)
    )
    assert found == expected
    assert all_read - read == 3 * GROUP * 7 - (3 * 7 + 3 * GROUP)  # the last token of each is read again


def test_a_cache_that_forgets_is_left_to_transformers(tmp_path):
    """A sliding window: what fell out of it cannot be had back."""
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=4, pad_token_id=0)
    found = []
    for of_trl in (False, True):
        torch.manual_seed(0)
        found.append(sampled(make(tmp_path / str(of_trl), MistralForCausalLM(config), of_trl=of_trl))[0])
    assert found[0] == found[1]

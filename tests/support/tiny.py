"""A language model of a few thousand parameters, and rollouts made by hand, for tests that need a real trainer."""

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = list("0123456789+-=?. abcdefghijklmnopqrstuvwxyz<>/:\n")
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


def tokenizer():
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[EOS]", "[UNK]", *CHARACTERS])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    characters.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]", padding_side="left"
    )
    fast.chat_template = CHAT
    return fast


def model(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=3 + len(CHARACTERS), pad_token_id=0, eos_token_id=1, bos_token_id=None, **{**sizes, **changes}
    )
    return LlamaForCausalLM(config)


def save(folder, **changes):
    model(**changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def prompts(count=8):
    return Dataset.from_list([{"prompt": f"{i}+{i}", "answer": str(2 * i)} for i in range(count)])


def rollout(rows=8, prompt=5, completion=12, seed=0):
    """The dictionary that TRL hands to `_compute_loss`, with π_old away from π_θ and holes in the mask."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    lengths = torch.randint(1, completion + 1, (rows, 1), generator=generator)
    mask = (torch.arange(completion) < lengths).long()
    inputs = {
        "prompt_ids": torch.randint(3, 40, (rows, prompt), generator=generator),
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": torch.randint(3, 40, (rows, completion), generator=generator),
        "completion_mask": mask,
        "advantages": torch.randn(rows, generator=generator),
        "drift": 0.4 * torch.randn(rows, completion, generator=generator),
        "ref_per_token_logps": -4 + 0.3 * random(rows, completion),
        "importance_sampling_ratio": 0.5 + random(rows, completion),
        "sampling_per_token_logps": -4 + 0.3 * random(rows, completion),
        "tool_mask": (random(rows, completion) < 0.8).long(),
    }
    return inputs | {"num_items_in_batch": (mask * inputs["tool_mask"]).sum()}


def with_old_logps(trainer, inputs):
    """Puts π_old at π_θ minus the rollout's drift."""
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            inputs["completion_ids"].shape[1],
        )
    return {**inputs, "old_per_token_logps": logps - inputs["drift"]}

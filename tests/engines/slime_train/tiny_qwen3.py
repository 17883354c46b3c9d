"""A Qwen3 of two layers: as Hugging Face saves it, and as Megatron's flags describe it."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY = 256
MEGATRON_FLAGS = f"""
    --num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --vocab-size {VOCABULARY}
    --num-attention-heads 4 --group-query-attention --num-query-groups 2 --kv-channels 16
    --qk-layernorm --disable-bias-linear --swiglu --normalization RMSNorm --norm-epsilon 1e-6
    --position-embedding-type rope --rotary-base 10000 --untie-embeddings-and-output-weights
"""


def save(folder):
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def model():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=128,
        vocab_size=VOCABULARY,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        initializer_range=0.1,  # with the default of 0.02 so small a model says nothing but log(1 / vocabulary)
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config)


def tokenizer():
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[EOS]", *(f"w{number}" for number in range(2, VOCABULARY))]
    by_word = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[PAD]"))
    by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=by_word, pad_token="[PAD]", eos_token="[EOS]")

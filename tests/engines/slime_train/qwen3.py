"""Small Qwen3s: as Hugging Face saves them, and as Megatron's flags describe them."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY = 256


@dataclass(frozen=True)
class Size:
    layers: int
    width: int  # twice that in the layers between
    responses: tuple[int, int]  # least and most tokens of those that it is trained on

    @property
    def megatron_flags(self):
        return f"""
            --num-layers {self.layers} --hidden-size {self.width} --ffn-hidden-size {2 * self.width}
            --num-attention-heads 4 --group-query-attention --num-query-groups 2 --kv-channels {self.width // 4}
            --vocab-size {VOCABULARY} --rollout-max-response-len {self.responses[1] + 4}
            --qk-layernorm --disable-bias-linear --swiglu --normalization RMSNorm --norm-epsilon 1e-6
            --position-embedding-type rope --rotary-base 10000 --untie-embeddings-and-output-weights
        """

    def model(self):
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        sizes = {"num_hidden_layers": self.layers, "hidden_size": self.width, "intermediate_size": 2 * self.width}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": self.width // 4}
        others = {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
        others["initializer_range"] = 0.1  # with 0.02, the default, a tiny model says nothing but log(1 / vocabulary)
        tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
        config = Qwen3Config(tie_word_embeddings=False, **sizes, **others, **tokens)
        return Qwen3ForCausalLM(config).eval()

    def save(self, folder):
        from transformers import PreTrainedTokenizerFast

        words = ["[PAD]", "[EOS]", *(f"w{number}" for number in range(2, VOCABULARY))]
        by_word = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[PAD]"))
        by_word.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=by_word, pad_token="[PAD]", eos_token="[EOS]")
        for part in (self.model(), tokenizer):
            part.save_pretrained(folder)


SIZES = {
    "tiny": Size(layers=2, width=64, responses=(30, 60)),
    "19 million": Size(layers=8, width=512, responses=(400, 512)),  # for what takes time
}

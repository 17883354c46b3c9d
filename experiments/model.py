"""A transformer of one million parameters, its sampler, and the log-probs of what was sampled."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from experiments.task import END, PAD, VOCABULARY

SIZE = {
    "hidden_size": 192,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}


def new_model(seed: int) -> LlamaForCausalLM:
    """Randomly initialised. Two wide layers learn the task as well as four narrow ones, in two thirds of the time."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SIZE,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Samples:
    """Sampled responses (B, T): ids, PAD after the end; the mask of what was sampled; log-probs; entropy in nats."""

    ids: Tensor
    mask: Tensor
    logps: Tensor
    entropy: Tensor

    @property
    def ended(self) -> Tensor:
        """(B,) bool: whether the response ended by itself."""
        return (self.ids == END).any(-1)


@torch.no_grad()
def sample(
    model: LlamaForCausalLM,
    prompts: Tensor,
    max_tokens: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    copies: int = 1,
) -> Samples:
    """`copies` responses, one after the other, to each row of `prompts` (B, P), which is read once, at temperature 1.

    Stops once every response has ended. `dtype` is that of the logits behind the log-probs; sampling itself is float32
    in every arm.
    """
    rows, width = prompts.shape
    layers = [_PreallocatedLayer(width + max_tokens) for _ in range(SIZE["num_hidden_layers"])]
    cache = Cache(layers=layers)
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    alive, inputs = torch.ones(rows * copies, dtype=torch.bool), prompts
    while len(steps) < max_tokens and alive.any():
        logits = model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        if not steps and copies > 1:
            cache.batch_repeat_interleave(copies)
            logits = logits.repeat_interleave(copies, 0)
        scores = logits.log_softmax(-1)
        probs = scores.exp()
        ids = torch.multinomial(probs, 1, generator=generator)[:, 0].where(alive, PAD)
        entropy = -(probs * scores).sum(-1)
        steps.append((ids, alive, target_logps(logits, ids, dtype), entropy))
        alive, inputs = alive & (ids != END), ids[:, None]
    return Samples(*(torch.stack(column, 1) for column in zip(*steps, strict=True)))


def response_logps(model: LlamaForCausalLM, prompts: Tensor, responses: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T) log-probs of `responses`, from logits in `dtype`. Padding stands on the right, so no mask is needed."""
    sequence = torch.cat([prompts, responses], 1)
    logits = model(sequence[:, :-1], use_cache=False, logits_to_keep=responses.shape[1]).logits
    return target_logps(logits, responses, dtype)


def target_logps(logits: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """log softmax(logits)[ids] in `dtype`; returned as float32."""
    return logits.to(dtype).log_softmax(-1).gather(-1, ids[..., None])[..., 0].float()


@contextmanager
def rounded(model: LlamaForCausalLM, forward: str | None) -> Iterator[None]:
    """Within it `model` computes in a forward of ROUNDED_FORWARDS; its gradients pass the rounding.

    "bfloat16" is autocast, as TRL's. "4 bits" rounds what each matrix gives to the significant bits of float8_e4m3fn:
    rounding exceeds what updates change then, as bfloat16's does in a large model.
    """

    def round_to_4_bits(_: torch.nn.Module, __: Any, out: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(out.detach())
        return out + (torch.ldexp((mantissa * 16).round() / 16, exponent) - out.detach())

    matrices = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and forward == "4 bits"]
    hooks = [matrix.register_forward_hook(round_to_4_bits) for matrix in matrices]
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=forward == "bfloat16"):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _PreallocatedLayer(DynamicLayer):
    """Keys and values in one allocation. DynamicLayer copies all of them for every token: half of a long rollout."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity, self._length = capacity, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            rows, heads, _, size = key_states.shape
            self._keys, self._values = key_states.new_empty(2, rows, heads, self._capacity, size)
        start, self._length = self._length, self._length + key_states.shape[2]
        self._keys[:, :, start : self._length] = key_states
        self._values[:, :, start : self._length] = value_states
        self.keys, self.values = self._keys[:, :, : self._length], self._values[:, :, : self._length]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._keys, self._values = (kept.repeat_interleave(repeats, 0) for kept in (self._keys, self._values))

    def get_seq_length(self) -> int:
        return self._length

"""Responses of a model, and the updates that move it away from the policy that sampled them."""

from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from fipo.rounding.forward import Responses

MICRO_BATCH = 4  # responses whose gradients are computed at once
GRADIENT_NORM = 1.0


def openings() -> list[str]:
    """First words of texts, for a model to go on with."""
    return files("fipo.rounding").joinpath("openings.txt").read_text().splitlines()


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: list[list[int]], samples: int, tokens: int, seed: int = 0) -> Responses:
    """`samples` responses of at most `tokens` tokens to each prompt's ids, one after the other, at temperature 1."""
    encoded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    torch.manual_seed(seed)
    ids = model.generate(
        **encoded,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
        num_return_sequences=samples,
        pad_token_id=tokenizer.pad_token_id,
    )
    prompt = encoded.attention_mask.repeat_interleave(samples, 0).bool()
    responses = ids[:, prompt.shape[1] :]
    ends = torch.isin(responses, torch.tensor(model.generation_config.eos_token_id, device=ids.device))
    trained = ends.cumsum(-1) - ends.long() == 0  # up to the first end, which is part of the response
    return Responses(ids, torch.cat([prompt, trained], -1), trained)


class Updates:
    """AdamW on the policy gradient of given advantages, as a reinforcement-learning engine makes it in float32."""

    def __init__(self, model: Any, learning_rate: float) -> None:
        self.model, self.learning_rate = model, learning_rate
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=0.0, weight_decay=0.0)

    def fill_moments(self, batches: list[tuple[Responses, Tensor]]) -> None:
        """Steps of learning rate 0, after which AdamW's steps are as small as in the middle of a run."""
        for batch in batches:
            self._step(*batch, 0.0)

    def update(self, responses: Responses, advantages: Tensor) -> None:
        """One step; `advantages` are (N,)."""
        self._step(responses, advantages, self.learning_rate)

    def _step(self, responses: Responses, advantages: Tensor, learning_rate: float) -> None:
        length, tokens = responses.trained.shape[1], responses.trained.sum()
        for start in range(0, len(responses), MICRO_BATCH):
            part, weights = responses[start : start + MICRO_BATCH], advantages[start : start + MICRO_BATCH, None]
            attended = part.attended.long()
            logits = self.model(input_ids=part.ids, attention_mask=attended, logits_to_keep=length + 1).logits[:, :-1]
            logps = logits.float().log_softmax(-1).gather(-1, part.ids[:, -length:, None])[..., 0]
            (-(weights * logps * part.trained).sum() / tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, GRADIENT_NORM)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()

"""A batch with everything that a real one may hold, and its loss by the naive twin, without verl."""

from functools import cache

import torch
from support import naive
from transformers import AutoModelForCausalLM

from fipo import FIPOParams

ROWS, PROMPT, RESPONSE = 8, 6, 14
DROPPED, PADDING = 2, (3, 7)
PARAMS = FIPOParams(decay_rate=8.0)


@cache
def batch(model):
    """Left-padded prompts, right-padded responses, as verl's trainer hands them over."""
    generator = torch.Generator().manual_seed(0)

    def lengths(low, high):
        return torch.randint(low, high + 1, (ROWS, 1), generator=generator)

    prompt = torch.arange(PROMPT) >= PROMPT - lengths(2, PROMPT)
    response = torch.arange(RESPONSE) < lengths(5, RESPONSE)
    attended = torch.cat([prompt, response], 1).long()
    ids = torch.randint(3, 40, attended.shape, generator=generator) * attended
    trained = response & (torch.rand(ROWS, RESPONSE, generator=generator) < 0.8)  # the rest: tool output
    trained[list(PADDING)] = False
    data = {
        "input_ids": ids,
        "attention_mask": attended,
        "position_ids": (attended.cumsum(1) - 1).clamp(min=0),
        "prompts": ids[:, :PROMPT],
        "responses": ids[:, PROMPT:],
        "response_mask": trained.long(),
        "advantages": torch.randn(ROWS, 1, generator=generator).expand(ROWS, RESPONSE) * response,
        "rollout_is_weights": 0.5 + torch.rand(ROWS, RESPONSE, generator=generator),
    }
    drift = 0.3 * torch.randn(ROWS, RESPONSE, generator=generator)
    drift[DROPPED] = 3.0  # every ratio is e³ > 10
    data["advantages"][DROPPED] = -response[DROPPED].float()
    with torch.no_grad():
        data["old_log_probs"] = (logps(AutoModelForCausalLM.from_pretrained(model), data) - drift) * response
    return data


def logps(model, data):
    """(B, T) log-probabilities of the responses, a row at a time, so that there is no padding to go wrong."""
    rows = []
    for ids, attended, response in zip(data["input_ids"], data["attention_mask"], data["responses"], strict=True):
        length = int(attended[PROMPT:].sum())
        logits = model(ids[attended.bool()][None]).logits[0, -length - 1 : -1]
        chosen = torch.log_softmax(logits, -1).gather(-1, response[:length, None])[:, 0]
        rows.append(torch.nn.functional.pad(chosen, (0, RESPONSE - length)))
    return torch.stack(rows)


def naive_update(path):
    """What one update of the whole batch should give: gradients, every row's weights where trained, who is dropped."""
    data, model = batch(path), AutoModelForCausalLM.from_pretrained(path)
    new = logps(model, data)
    mask = data["response_mask"]
    columns = (new.detach().double(), data["old_log_probs"].double(), data["advantages"].double(), mask)
    slopes, weights, dropped = torch.zeros_like(new), [], []
    for row in range(ROWS):
        values = [column[row].tolist() for column in columns]
        _, slope, weight, drop = naive.fipo(*values, PARAMS, epsilon_low=0.2, epsilon_high=0.28)
        slopes[row] = 0 if drop else torch.tensor(slope)
        kept = [w for w, m in zip(weight, mask[row].tolist(), strict=True) if m]
        weights.append(torch.tensor(kept, dtype=torch.double))
        dropped.append(drop)
    new.backward(slopes * data["rollout_is_weights"] / mask.sum())
    return {name: p.grad for name, p in model.named_parameters()}, weights, dropped

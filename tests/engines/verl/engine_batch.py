"""The batch that all engines share as verl's trainer hands it over, padded and with rows of padding, and its update."""

from functools import cache

import torch
from support import one_truth
from transformers import AutoModelForCausalLM

PADDING = (one_truth.ROWS, one_truth.ROWS + 1)
ROWS, PROMPT, RESPONSE = one_truth.ROWS + len(PADDING), 6, one_truth.TOKENS


def with_padding(column):
    return torch.nn.functional.pad(column, (0, 0, 0, len(PADDING)))


@cache
def batch(model):
    """Left-padded prompts, right-padded responses, weights of verl's correction."""
    generator, data = torch.Generator().manual_seed(0), one_truth.batch()
    prompt = torch.arange(PROMPT) >= PROMPT - torch.randint(2, PROMPT + 1, (ROWS, 1), generator=generator)
    response = torch.arange(RESPONSE) < torch.tensor([*data["lengths"], 5, RESPONSE])[:, None]
    attended = torch.cat([prompt, response], 1).long()
    ids = torch.randint(3, 40, attended.shape, generator=generator) * attended
    found = {"input_ids": ids, "attention_mask": attended, "position_ids": (attended.cumsum(1) - 1).clamp(min=0)}
    found |= {"prompts": ids[:, :PROMPT], "responses": ids[:, PROMPT:]}
    found |= {
        "response_mask": with_padding(data["mask"]).long(),
        "advantages": with_padding(data["advantages"]).float(),
    }
    found["rollout_is_weights"] = 0.5 + torch.rand(ROWS, RESPONSE, generator=generator)
    with torch.no_grad():
        new = logps(AutoModelForCausalLM.from_pretrained(model), found)
    return found | {"old_log_probs": (new - with_padding(data["log_ratio"]).float()) * response}


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
    """What one update of the whole batch should give: gradients, and every row's weights where trained."""
    data, model = batch(path), AutoModelForCausalLM.from_pretrained(path)
    weights, _, slopes = (with_padding(x) if isinstance(x, torch.Tensor) else x for x in one_truth.expected())
    (slopes * data["rollout_is_weights"] * logps(model, data)).sum().backward()
    rows = [weight[mask] for weight, mask in zip(weights, data["response_mask"].bool(), strict=True)]
    return {name: p.grad for name, p in model.named_parameters()}, rows

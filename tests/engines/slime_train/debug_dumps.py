"""Rollouts as slime's --save-debug-rollout-data writes them and --load-debug-rollout-data reads them.

python debug_dumps.py SIZE MODEL DUMPS: makes a model and the rollouts of its runs, in two new folders.

Every update gets one group of four responses. The log-probs that a rollout engine would have returned are the model's
own minus a drift. With --use-rollout-logprobs the drift is the log-ratio at the first update, and makes every update
hold what is rare: sample 1 is dropped for two dual-clipped tokens, sample 2 keeps one and has a safety-capped token.
"""

import sys
from pathlib import Path

import torch
from qwen3 import SIZES, VOCABULARY

ROLLOUTS, GROUPS, GROUP_SIZE = 2, 4, 4
REWARDS = [1.0, 0.0, 0.0, 1.0]
DROPPED, SAFETY_CAPPED = 1, 2
ABOVE_DUAL_CLIP, ABOVE_SAFETY = 3.0, 1.5  # log-ratios: exp(3) > 10, exp(1.5) > 3
TOOL_OUTPUT = slice(8, 14)  # of every response, not trained


def save(folder, model, responses):
    """Writes folder/rollout_0.pt and folder/rollout_1.pt."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for rollout in range(ROLLOUTS):
        samples = []
        for group in range(rollout * GROUPS, (rollout + 1) * GROUPS):
            prompt = _random_tokens(3, 12, generator)
            samples += [_sample(model, group, place, prompt, responses, generator) for place in range(GROUP_SIZE)]
        torch.save({"rollout_id": rollout, "samples": samples}, folder / f"rollout_{rollout}.pt")


def _sample(model, group, place, prompt, responses, generator):
    response = _random_tokens(*responses, generator)
    drift = _drift(place, len(response), generator)
    mask = torch.ones(len(response), dtype=torch.long)
    mask[TOOL_OUTPUT] = 0
    sample = {"group_index": group, "index": group * GROUP_SIZE + place, "rollout_id": None, "status": "completed"}
    sample |= {"prompt": _text(prompt), "tokens": prompt + response, "label": None, "reward": REWARDS[place]}
    sample |= {"response": _text(response), "response_length": len(response), "loss_mask": mask.tolist()}
    return sample | {"rollout_log_probs": (log_probs(model, prompt, response) - drift).tolist(), "metadata": {}}


@torch.no_grad()
def log_probs(model, prompt, response):
    """The model's log-prob of every token of the response."""
    scores = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return scores.gather(-1, torch.tensor(response)[:, None])[:, 0]


def _drift(place, length, generator):
    drift = 0.1 * torch.randn(length, generator=generator)
    if place == DROPPED:  # tokens that lie on different ranks of two with context parallelism
        drift[[1, length // 2]] = ABOVE_DUAL_CLIP
    if place == SAFETY_CAPPED:
        drift[[3, length // 2]] = torch.tensor([ABOVE_SAFETY, ABOVE_DUAL_CLIP])
    return drift


def _random_tokens(least, most, generator):
    length = int(torch.randint(least, most, (), generator=generator))
    return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()


def _text(tokens):
    return " ".join(f"w{token}" for token in tokens)


if __name__ == "__main__":
    size = SIZES[sys.argv[1]]
    size.save(Path(sys.argv[2]))
    save(Path(sys.argv[3]), size.model(), size.responses)

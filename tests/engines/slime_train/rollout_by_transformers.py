"""For slime's --rollout-function-path, in the place of SGLang: samples from the weights that --save-hf wrote last."""

import torch
from debug_dumps import log_probs
from qwen3 import VOCABULARY
from slime.rollout.base_types import RolloutFnTrainOutput
from slime.utils.types import Sample
from transformers import AutoModelForCausalLM

RESPONSE = 16  # tokens


def generate(args, rollout_id, data_source, evaluation=False):
    """One rollout. The reward is the share of tokens in the upper half of the vocabulary."""
    folder = args.save_hf.format(rollout_id=rollout_id - 1) if rollout_id else args.hf_checkpoint
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(rollout_id)
    groups = range(rollout_id * args.rollout_batch_size, (rollout_id + 1) * args.rollout_batch_size)
    return RolloutFnTrainOutput([_group(model, group, args.n_samples_per_prompt, generator) for group in groups])


@torch.no_grad()
def _group(model, group, size, generator):
    prompt = torch.randint(2, VOCABULARY, (4,), generator=generator)
    tokens = prompt.expand(size, -1)
    for _ in range(RESPONSE):
        likely = model(tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(likely, 1, generator=generator)], 1)
    return [_sample(model, group * size + place, group, row.tolist()) for place, row in enumerate(tokens)]


def _sample(model, index, group, tokens):
    prompt, response = tokens[:-RESPONSE], tokens[-RESPONSE:]
    reward = sum(token >= VOCABULARY // 2 for token in response) / RESPONSE
    place = {"index": index, "group_index": group, "rollout_id": index, "status": Sample.Status.COMPLETED}
    given = {"rollout_log_probs": log_probs(model, prompt, response).tolist(), "reward": reward}
    return Sample(tokens=tokens, response_length=RESPONSE, **place, **given)

"""The trainer gives the batch that all engines share what the naive implementation gives it."""

import pytest
import torch
from support import one_truth, tiny
from support.harness import COMMON, reward

from fipo.trainer import FIPOConfig, FIPOTrainer


@pytest.mark.parametrize("regularized", [False, True])
def test_trainer(regularized, tmp_path):
    data = one_truth.batch()
    options = {"per_device_train_batch_size": one_truth.ROWS, "num_generations": 2}
    options |= {"fipo_decay_rate": one_truth.PARAMS.decay_rate}
    options |= {"entropy_coef": one_truth.ENTROPY_COEF, "use_bias_correction_kl": False} if regularized else {}
    config = FIPOConfig(str(tmp_path), **{**COMMON, **options})
    model = tiny.model().double()
    trainer = FIPOTrainer(model, reward, config, train_dataset=tiny.prompts(), processing_class=tiny.tokenizer())
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = one_truth.BETA if regularized else 0.0  # TRL would load a reference model
    inputs = tiny.rollout(rows=one_truth.ROWS, completion=one_truth.TOKENS)
    inputs["completion_mask"] = torch.ones_like(data["mask"]).long()
    inputs |= {"tool_mask": data["mask"].long(), "advantages": data["advantages"], "drift": data["log_ratio"]}
    inputs["num_items_in_batch"] = data["mask"].sum() * config.steps_per_generation  # of the rollout
    inputs = tiny.with_old_logps(trainer, inputs)
    inputs["ref_per_token_logps"] = inputs["old_per_token_logps"] + data["log_ratio"] + data["reference_gap"]
    seen = []
    trainer.observers.append(seen.append)
    model.train()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    every = model(ids).logits[:, inputs["prompt_ids"].shape[1] - 1 : -1].log_softmax(-1)
    logps = every.gather(-1, inputs["completion_ids"][:, :, None])[:, :, 0]
    entropy = -(every.exp() * every).sum(-1) if regularized else None
    one_truth.assert_same_credit(seen[0].tokens.weight, loss.detach(), None if entropy is None else entropy.detach())
    assert seen[0].tokens.dropped.nonzero().flatten().tolist() == [one_truth.DROPPED]
    parameters = list(model.parameters())
    one_truth.assert_same_gradients([p.grad for p in parameters], logps, parameters, entropy)

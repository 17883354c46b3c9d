"""The trainer gives the batch that all engines share what the naive twin gives it, on both paths of the loss."""

import pytest
import torch
from support import one_truth, tiny
from test_parity import COMMON, reward

from fipo.trainer import FIPOConfig, FIPOTrainer


@pytest.mark.parametrize("streaming", [True, False])
def test_trainer(streaming, tmp_path):
    data = one_truth.batch()
    options = {"per_device_train_batch_size": one_truth.ROWS, "num_generations": 2, "fipo_streaming": streaming}
    config = FIPOConfig(str(tmp_path), **{**COMMON, **options}, fipo_decay_rate=one_truth.PARAMS.decay_rate)
    model = tiny.model().double()
    trainer = FIPOTrainer(model, reward, config, train_dataset=tiny.prompts(), processing_class=tiny.tokenizer())
    trainer.current_gradient_accumulation_steps = 1
    inputs = tiny.rollout(rows=one_truth.ROWS, completion=one_truth.TOKENS)
    inputs["completion_mask"] = torch.ones_like(data["mask"]).long()
    inputs |= {"tool_mask": data["mask"].long(), "advantages": data["advantages"], "drift": data["log_ratio"]}
    inputs["num_items_in_batch"] = data["mask"].sum() * config.steps_per_generation  # of the rollout
    inputs = tiny.with_old_logps(trainer, inputs)
    results = []
    record = trainer._record
    trainer._record = lambda result, *others: (results.append(result), record(result, *others))
    model.train()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    one_truth.assert_same_credit(results[0].tokens.weight, loss.detach())
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    logits = model(ids).logits[:, inputs["prompt_ids"].shape[1] - 1 : -1]
    logps = torch.log_softmax(logits, -1).gather(-1, inputs["completion_ids"][:, :, None])[:, :, 0]
    parameters = list(model.parameters())
    one_truth.assert_same_gradients([p.grad for p in parameters], logps, parameters)

"""FIPOTrainer's loss is TRL's own of the weighed advantages, whatever else is switched on, and so FIPO's."""

import pytest
import torch
from support import one_truth, tiny
from support.harness import OPTIONS, assert_same, loss_and_gradients, make

from fipo import FIPOParams, fipo_loss


@pytest.mark.parametrize("name", OPTIONS)
def test_the_loss_is_trls_own_of_weighed_advantages(name, tmp_path):
    """TRL's trainer, given (B, T) advantages that this test multiplied itself; one sequence is dropped."""
    options = {"delta": 1.6, "epsilon_high": 0.28, **OPTIONS[name]}
    ours, theirs = (make(tmp_path, of_trl=of_trl, **options) for of_trl in (False, True))
    ours.use_vllm = theirs.use_vllm = name == "vllm"
    seen = []
    ours.observers.append(seen.append)
    for seed in range(2):  # two micro-batches: adaptive entropy has a state
        inputs = tiny.rollout(seed=seed)
        inputs["advantages"][0], inputs["drift"][0, :3], inputs["completion_mask"][0, :4] = -1.0, 1.5, 1
        inputs["tool_mask"][0, :3] = 1
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        if seed == 1:
            inputs |= {"completion_mask": mask.long()}
            del inputs["tool_mask"]
        inputs["importance_sampling_ratio"][1, :2] = 0.0  # which vLLM's mask makes of tokens that are too far away
        inputs = tiny.with_old_logps(theirs, inputs)
        found = loss_and_gradients(ours, inputs)

        rejected = inputs["importance_sampling_ratio"] == 0 if name == "vllm" else None
        known = (seen[seed].logps, inputs["old_per_token_logps"], inputs["advantages"], mask)
        out = fipo_loss(*known, FIPOParams(dual_clip_c=1.6), rejected=rejected)
        assert out.dropped[0] and not out.kept[0].any()
        weighed = {**inputs, "advantages": inputs["advantages"][:, None] * out.weight * out.kept}
        assert_same(found, loss_and_gradients(theirs, weighed))
    metrics = theirs._metrics["train"]
    assert metrics == {name: pytest.approx(ours._metrics["train"][name], rel=1e-5) for name in metrics}
    assert "aux_loss" in metrics or name != "mixture of experts"


@pytest.mark.parametrize("regularized", [False, True])
def test_the_loss_is_the_naive_ones(regularized, tmp_path):
    """Of the batch that all engines share."""
    data, model = one_truth.batch(), tiny.model().double()
    options = {"per_device_train_batch_size": one_truth.ROWS, "num_generations": 2}
    options |= {"entropy_coef": one_truth.ENTROPY_COEF, "use_bias_correction_kl": False} if regularized else {}
    trainer = make(tmp_path, model, **options, fipo_decay_rate=one_truth.PARAMS.decay_rate)
    trainer.beta = one_truth.BETA if regularized else 0.0  # TRL would load a reference model
    inputs = tiny.rollout(rows=one_truth.ROWS, completion=one_truth.TOKENS)
    inputs["completion_mask"] = torch.ones_like(data["mask"]).long()
    inputs |= {"tool_mask": data["mask"].long(), "advantages": data["advantages"], "drift": data["log_ratio"]}
    inputs["num_items_in_batch"] = data["mask"].sum() * trainer.args.steps_per_generation  # of the rollout
    inputs = tiny.with_old_logps(trainer, inputs)
    inputs["ref_per_token_logps"] = inputs["old_per_token_logps"] + data["log_ratio"] + data["reference_gap"]
    seen = []
    trainer.observers.append(seen.append)
    loss, gradients = loss_and_gradients(trainer, inputs)

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    every = model(ids).logits[:, inputs["prompt_ids"].shape[1] - 1 : -1].log_softmax(-1)
    logps = every.gather(-1, inputs["completion_ids"][:, :, None])[:, :, 0]
    entropy = -(every.exp() * every).sum(-1) if regularized else None
    one_truth.assert_same_credit(seen[0].tokens.weight, loss, entropy.detach() if regularized else None)
    assert seen[0].tokens.dropped.nonzero().flatten().tolist() == [one_truth.DROPPED]
    one_truth.assert_same_gradients(gradients.values(), logps, list(model.parameters()), entropy)


def test_the_loss_is_finite(tmp_path):
    """Ratios that overflow, and a π_old that an engine could not compute: TRL's loss clamps neither."""
    ours = make(tmp_path)
    inputs = tiny.with_old_logps(ours, tiny.rollout())
    inputs["completion_mask"][:], inputs["tool_mask"][:] = 1, 1
    places = torch.tensor([2, 4, 5]), torch.tensor([3, 5, 0])
    without = inputs["tool_mask"].index_put(places, torch.tensor(0))
    _, expected = loss_and_gradients(ours, {**inputs, "tool_mask": without})
    inputs["old_per_token_logps"][places] += torch.tensor([-200.0, torch.nan, -torch.inf])
    loss, gradients = loss_and_gradients(ours, inputs)
    assert loss.isfinite()
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-7)
    inputs |= {"tool_mask": torch.zeros_like(inputs["completion_mask"]), "num_items_in_batch": torch.tensor(0)}
    loss, gradients = loss_and_gradients(ours, inputs)
    assert loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())

"""The probe of rounding: silent in float32, right in bfloat16, and without effect on the training."""

import pytest
import torch
from peft import LoraConfig
from support import tiny
from support.harness import make

from fipo.core.logged import ROUNDING
from fipo.trainer.rounding import float32_arithmetic


def run(tmp_path, model=None, every=1, **options):
    def more_ones(completions, **_):
        return [float(completion.count("1")) for completion in completions]

    options = {"max_steps": 8, "save_strategy": "no", "logging_steps": 1, "fipo_trace_every": every, **options}
    trainer = make(tmp_path, model, more_ones, prompts=64, **options)
    trainer.train()
    return trainer, [line[ROUNDING] for line in trainer.state.log_history if ROUNDING in line]


def test_float32_has_no_rounding_to_log(tmp_path, caplog):
    assert run(tmp_path, learning_rate=1e-2)[1] == []
    assert "Rounding" not in caplog.text


@pytest.mark.parametrize(("how", "learning_rate"), [("autocast", 1e-5), ("weights", 1e-3), ("adapters", 1e-3)])
def test_bfloat16_is_logged_and_warned_of(tmp_path, caplog, how, learning_rate):
    model = tiny.model(hidden_size=128, initializer_range=0.5)  # large logits, as trained models have
    options = {"bf16": True} if how == "autocast" else {}
    if how == "adapters":
        options["peft_config"] = LoraConfig(r=4, target_modules="all-linear")
    _, found = run(tmp_path, model if how == "autocast" else model.bfloat16(), learning_rate=learning_rate, **options)
    assert len(found) == 2 and min(found) > 0.01  # rollouts
    assert caplog.text.count("Rounding: the precision") == 1


def test_the_probe_changes_no_training(tmp_path):
    weights = []
    for every in (0, 1):
        trainer, found = run(tmp_path / str(every), every=every, bf16=True, learning_rate=1e-2)
        assert bool(found) == bool(every)
        weights.append(torch.cat([weight.flatten() for weight in trainer.model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("autocast", [True, False])
def test_float32_arithmetic_is_that_of_the_rounded_weights(tmp_path, autocast):
    trainer, _ = run(tmp_path, None if autocast else tiny.model().bfloat16(), bf16=autocast, max_steps=4)
    model, ids = trainer.model, torch.randint(3, 40, (2, 9))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    rounded = tiny.model()
    rounded.load_state_dict(model.state_dict())
    for name, weight in rounded.named_parameters():
        if weight.dim() == 2 and "embed" not in name:  # what autocast rounds
            weight.data = weight.data.bfloat16().float()
    rows = ids, torch.ones_like(ids), 5
    with torch.no_grad(), float32_arithmetic(model, trainer.accelerator):
        exact, _, _ = trainer._get_per_token_logps_and_entropies(model, *rows)
    expected = rounded(ids).logits[:, -6:-1].log_softmax(-1).gather(-1, ids[:, -5:, None])[..., 0]
    torch.testing.assert_close(exact, expected, atol=2e-6, rtol=0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())

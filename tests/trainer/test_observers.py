"""What the trainer shows: to observers, on the model card, and when it is not what was asked for."""

import torch
from support.harness import first_number_odd_is_random, make, rollout_trainer

from fipo.trainer import Credit


def test_an_observer_sees_every_micro_batch(tmp_path):
    seen = []
    options = {"max_steps": 8, "save_strategy": "no", "learning_rate": 1e-2}
    trainer = make(tmp_path, rewards=first_number_odd_is_random, **options)
    trainer.observers.append(seen.append)
    trainer.train()
    assert [(credit.rollout, credit.micro_batch, credit.update) for credit in seen] == [
        (rollout, update, update) for rollout in (0, 1) for update in range(4)
    ]
    assert all(isinstance(credit, Credit) and credit.training for credit in seen)
    for credit in seen:
        assert credit.tokens.weight.shape == credit.mask.shape == credit.advantages.shape
        assert not any(x.requires_grad for x in (credit.tokens.weight, credit.logps, credit.entropy))


def test_the_model_card_says_fipo(tmp_path):
    trainer = rollout_trainer(tmp_path, first_number_odd_is_random)
    trainer.create_model_card(model_name="mine")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "trained with FIPO" in card and "2603.19835" in card and "ma2026fipo" in card
    assert "GRPO" not in card.replace("GRPOTrainer", "") and "DeepSeekMath" not in card


def test_a_control_in_training(tmp_path):
    seen, moved = [], False
    trainer = rollout_trainer(tmp_path, first_number_odd_is_random, learning_rate=1e-2, fipo_control="shuffle")
    trainer.observers.append(seen.append)
    trainer.train()
    for credit in seen:
        own = credit.tokens.raw_weight.clamp(trainer.params.weight_low, trainer.params.weight_high)
        for weight, fipos, mask in zip(credit.tokens.weight, own, credit.mask.bool(), strict=True):
            torch.testing.assert_close(weight[mask].sort().values, fipos[mask].sort().values)
            moved |= bool((weight - fipos)[mask].abs().max() > 1e-3)
    assert moved

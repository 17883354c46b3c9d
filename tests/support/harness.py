"""Trainers of a tiny model, ours and TRL's, and one micro-batch's loss and gradients."""

import os
import random

import torch

from fipo.trainer import FIPOConfig, FIPOTrainer
from support import tiny

NEUTRAL = {"fipo_clip_ratio_low": 0.0, "fipo_clip_ratio_high": 0.0, "fipo_max_dual_clipped": 10**6}
COMMON = {
    "use_cpu": os.environ.get("FIPO_TEST_DEVICE", "cpu") == "cpu",
    "bf16": False,
    "report_to": "none",
    "max_completion_length": 12,
    "num_generations": 4,
    "steps_per_generation": 4,
    "per_device_train_batch_size": 8,
    "gradient_checkpointing": False,
}
OPTIONS = {
    "plain": {},
    "kl": {"beta": 0.1},
    "kl with bias correction": {"beta": 0.1, "use_bias_correction_kl": True},
    "entropy bonus": {"entropy_coef": 0.01},
    "adaptive entropy": {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 5.0},
    "high-entropy tokens": {"top_entropy_quantile": 0.5, "entropy_coef": 0.01},
    "off-policy mask": {"off_policy_mask_threshold": 0.1},
    "sequence-level importance": {"importance_sampling_level": "sequence"},
    "vllm": {"vllm_importance_sampling_correction": True},
    "lora": {"peft": True},
    "accumulation": {"gradient_accumulation_steps": 2, "beta": 0.1, "entropy_coef": 0.01},
    **{kind: {"loss_type": kind} for kind in ("grpo", "bnpo", "dr_grpo", "sapo", "vespo")},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
}


def reward(completions, **_):
    return [0.0] * len(completions)


def make(trainer_class, config_class, tmp_path, peft=False, **options):
    peft_config = None
    if peft:
        from peft import LoraConfig

        peft_config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    folder = tiny.save(tmp_path / "model") if options.get("beta") else None
    model = tiny.model() if folder is None else tiny.LlamaForCausalLM.from_pretrained(folder)
    config = config_class(str(tmp_path / "run"), **{**COMMON, **options})
    trainer = trainer_class(
        model,
        reward,
        config,
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
        peft_config=peft_config,
    )
    trainer.current_gradient_accumulation_steps = config.gradient_accumulation_steps
    return trainer


def loss_and_gradients(trainer, inputs):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-7)


GROUP = 4


def rollout_trainer(tmp_path, rewards, **options):
    """A trainer whose rollouts are 4 groups of 4 short completions, in training mode."""
    settings = COMMON | {"per_device_train_batch_size": GROUP, "max_completion_length": 8}
    trainer = FIPOTrainer(
        tiny.model(),
        rewards,
        FIPOConfig(str(tmp_path), **{**settings, **options}),
        train_dataset=tiny.prompts(16),
        processing_class=tiny.tokenizer(),
    )
    trainer.model.train()
    return trainer


def group_batch(trainer, indices):
    """These prompts, each repeated for its group."""
    return [trainer.train_dataset[index] for index in indices for _ in range(GROUP)]


def first_number_odd_is_random(prompts, completions, **_):
    """Equal rewards where a prompt's first number is even."""
    generator = random.Random(0)
    return [generator.random() if int(prompt.split("+")[0]) % 2 else 1.0 for prompt in prompts]

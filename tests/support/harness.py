"""Trainers of a tiny model, ours and TRL's, and one micro-batch's loss and gradients."""

import os
import random

import torch
from peft import LoraConfig
from transformers import MixtralConfig, MixtralForCausalLM
from trl import GRPOConfig, GRPOTrainer

from fipo.trainer import FIPOConfig, FIPOTrainer
from support import tiny

COMMON = {"use_cpu": os.environ.get("FIPO_TEST_DEVICE", "cpu") == "cpu", "bf16": False, "report_to": "none"}
COMMON |= {"max_completion_length": 12, "num_generations": 4, "steps_per_generation": 4}
COMMON |= {"per_device_train_batch_size": 8, "gradient_checkpointing": False}
SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
EXPERTS = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.5}
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
    "lora": {"peft_config": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)},
    "mixture of experts": {"experts": True},
    "accumulation": {"gradient_accumulation_steps": 2, "beta": 0.1, "entropy_coef": 0.01},
    **{kind: {"loss_type": kind} for kind in ("grpo", "bnpo", "dr_grpo", "sapo", "vespo")},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
}


def reward(completions, **_):
    return [0.0] * len(completions)


def make(tmp_path, model=None, rewards=reward, *, of_trl=False, prompts=8, peft_config=None, experts=False, **options):
    trainer_class, config_class = (GRPOTrainer, GRPOConfig) if of_trl else (FIPOTrainer, FIPOConfig)
    if experts:
        torch.manual_seed(0)
        model = MixtralForCausalLM(MixtralConfig(**SIZES, **EXPERTS))
    elif options.get("beta"):  # TRL loads a reference model from there
        model = tiny.LlamaForCausalLM.from_pretrained(tiny.save(tmp_path / "model"))
    trainer = trainer_class(
        tiny.model() if model is None else model,
        rewards,
        config_class(str(tmp_path / "run"), **COMMON | options),
        train_dataset=tiny.prompts(prompts),
        processing_class=tiny.tokenizer(),
        peft_config=peft_config,
    )
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def loss_and_gradients(trainer, inputs):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    """Losses and gradients."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-7)


GROUP = 4


def rollout_trainer(tmp_path, rewards, **options):
    """A trainer whose rollouts are 4 groups of 4 short completions."""
    settings = {"per_device_train_batch_size": GROUP, "max_completion_length": 8, "prompts": 16}
    return make(tmp_path, None, rewards, **settings | options)


def group_batch(trainer, indices):
    """These prompts, each repeated for its group."""
    return [trainer.train_dataset[index] for index in indices for _ in range(GROUP)]


def first_number_odd_is_random(prompts, completions, **_):
    """Equal rewards where a prompt's first number is even."""
    generator = random.Random(0)
    return [generator.random() if int(prompt.split("+")[0]) % 2 else 1.0 for prompt in prompts]

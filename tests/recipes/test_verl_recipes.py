"""The shell recipes for verl, composed with verl's own Hydra configuration and checked by verl's own code."""

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.shell_recipes import dry_run, start

pytestmark = pytest.mark.verl

SCRIPTS = {"32b": "verl/fipo_qwen2.5_32b.sh", "7b": "verl/fipo_qwen2.5_math_7b.sh"}
ARMS = ["fipo", "dapo", "shuffled", "uniform"]
REQUIRED = {
    "HF_CHECKPOINT": "/shared/qwen",
    "PROMPT_DATA": "/shared/train.parquet",
    "EVAL_DATA": "/shared/eval.parquet",
}
LOSS = "actor_rollout_ref.actor.policy_loss."


def overrides(model, arm="fipo", *arguments, **variables):
    (job,) = dry_run(SCRIPTS[model], *arguments, ARM=arm, **REQUIRED | variables)
    start = job.index("--") + 1
    assert job[:3] == ["ray", "job", "submit"] and job[start : start + 3] == ["python3", "-m", "verl.trainer.main_ppo"]
    return job[start + 3 :]


def compose(words):
    import verl
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer", overrides=words)


def without_fipo(words):
    """The same run with verl's own policy loss, for what FIPO's class has no part in."""
    return [word for word in words if LOSS not in word]


@pytest.mark.parametrize(("model", "arm"), [(model, arm) for model in SCRIPTS for arm in ARMS])
def test_every_override_arrives_and_verl_accepts_the_run(model, arm):
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    words = overrides(model, arm)
    config = compose(words)
    for word in words:
        key, value = word.lstrip("+").split("=", 1)
        expected = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
        assert OmegaConf.select(config, key) == expected, word
        assert not key.startswith(IGNORED), word

    config = compose(without_fipo(words))
    assert not need_critic(config) and not need_reference_policy(config)
    validate_config(config, use_reference_policy=False, use_critic=False)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert config.data.train_batch_size / actor.ppo_mini_batch_size * actor.ppo_epochs == 8
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.28, 10.0)
    assert (actor.engine.strategy, actor.optim.clip_grad, actor.optim.lr_warmup_steps) == ("fsdp2", 1.0, 10)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert rollout.prompt_length + rollout.response_length == rollout.max_model_len == actor.ppo_max_token_len_per_gpu
    # What computes π_old sees the same token budget as training: verl derives it.
    assert rollout.log_prob_use_dynamic_bsz and rollout.log_prob_max_token_len_per_gpu == rollout.max_model_len
    assert config.trainer.use_v1
    assert PPOTrainer._resolve_filter_groups_metric(SimpleNamespace(config=config)) == "acc"  # groups of equal accuracy


ACTOR = "actor_rollout_ref.actor."
IGNORED = (f"{ACTOR}grad_clip", f"{ACTOR}ulysses_sequence_parallel_size", "algorithm.filter_groups.max_num_gen_batches")
IGNORED += ("data.gen_batch_size", "reward_model.", "actor_rollout_ref.ref.", "critic.", "algorithm.kl_ctrl.")


@pytest.mark.parametrize(("model", "limit", "buffer"), [("32b", 20480, 4096), ("7b", 10240, 2048)])
def test_verls_reward_manager_penalizes_overlong_responses(model, limit, buffer):
    """Right answers lose nothing up to limit − buffer, then linearly 1 until the limit; `acc` stays for the filter."""
    import torch
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    config = compose(without_fipo(overrides(model)))
    empty = {name: torch.zeros(3, limit, dtype=torch.long) for name in ("responses", "attention_mask")}
    known = {"data_source": ["math_dapo"] * 3, "reward_model": [{"ground_truth": "7"}] * 3}
    data = DataProto.from_dict(tensors=empty, non_tensors=known)
    for row, length in enumerate((limit - buffer, limit - buffer // 2, limit)):
        data.batch["attention_mask"][row, :length] = 1

    async def rewards():
        manager_class = get_reward_manager_cls(config.reward.reward_manager.name)
        manager = manager_class(config, SimpleNamespace(decode=lambda *_, **__: "Answer: 7"), compute_score=None)
        return [await manager.run_single(data[row : row + 1]) for row in range(3)]

    results = asyncio.run(rewards())
    assert [result["reward_extra_info"]["acc"] for result in results] == [True] * 3
    torch.testing.assert_close([float(result["reward_score"]) for result in results], [1.0, 0.5, 0.0])


@pytest.mark.parametrize("model", SCRIPTS)
def test_the_arms_differ_in_the_policy_loss_alone(model):
    fipo, dapo, shuffled, uniform = (overrides(model, arm, RUN_NAME="same") for arm in ARMS)
    assert without_fipo(fipo) == without_fipo(dapo)
    assert [word for word in dapo if LOSS in word] == [f"{LOSS}loss_mode=vanilla"]
    assert dapo == overrides(model, "grpo", RUN_NAME="same")
    for words, control in ((shuffled, "shuffle"), (uniform, "uniform")):
        assert [word for word in words if word not in fipo] == [f"+{LOSS}control={control}"]
        assert set(fipo) < set(words)


def test_a_seed_reaches_data_rollouts_and_mini_batches_and_users_overrides_win():
    config = compose(overrides("7b", "fipo", "trainer.nnodes=2", f"{LOSS}decay_rate=128", SEED="5"))
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.seed, rollout.seed, actor.data_loader_seed) == (5, 5, 5)
    assert config.trainer.experiment_name == "Qwen2.5-Math-7B-fipo-s5"
    assert config.trainer.nnodes == 2 and actor.policy_loss.decay_rate == 128


@pytest.mark.parametrize("model", SCRIPTS)
def test_the_weights_are_the_papers(model):
    from verl.utils.config import omega_conf_to_dataclass

    from fipo import FIPOParams

    actor = omega_conf_to_dataclass(compose(overrides(model)).actor_rollout_ref.actor)
    assert actor.policy_loss.loss_mode == "fipo"
    assert actor.policy_loss.params(actor.clip_ratio_c) == FIPOParams.preset(model)


def test_a_context_of_4096_tokens_is_extended_for_training_and_for_vllm():
    from transformers import Qwen2Config
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.model import update_model_config

    config = compose(without_fipo(overrides("7b")))
    model = Qwen2Config(max_position_embeddings=4096)
    update_model_config(model, override_config_kwargs=config.actor_rollout_ref.model.override_config)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert model.max_position_embeddings == rollout.max_model_len == 12288
    # verl hands a dictionary to vLLM as JSON, and only a plain one.
    assert json.dumps(rollout.engine_kwargs["vllm"]["hf_overrides"]) == '{"max_position_embeddings": 12288}'


def test_what_cannot_work_is_one_sentence():
    wrong = [({name: ""}, rf"{name} is not set; set it to [^\n]+\.") for name in REQUIRED]
    wrong.append(({"ARM": "ppo"}, "ARM is ppo, but must be fipo, dapo, grpo, shuffled or uniform."))
    for variables, sentence in wrong:
        result = start(SCRIPTS["7b"], **REQUIRED | {"DRY_RUN": "1"} | variables)
        assert result.returncode == 2 and result.stdout == ""
        assert re.fullmatch(rf"fipo_qwen2.5_math_7b.sh: {sentence}\n", result.stderr)

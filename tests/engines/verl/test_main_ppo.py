"""verl's own trainer, as its users start it: Ray, two FSDP2 ranks on gloo, rollouts, rewards, three steps."""

import json
import re
from collections import Counter

import hf_rollout
import numpy as np
import pytest
import toy
from overrides import ACTOR, FIPO, LOSS, ON_CPU, run_on_cpu
from support import tiny

from fipo import FIPOParams
from fipo.cli import main
from fipo.core.logged import TOKEN_MEANS
from fipo.report.curves import draw_curves, read_metrics
from fipo.traces import read_traces

pytestmark = [pytest.mark.verl, pytest.mark.timeout(600)]
ROLLOUT, MODEL = "actor_rollout_ref.rollout", "actor_rollout_ref.model"
STEPS = 3
COMMAND = f"""
    algorithm.adv_estimator=grpo
    data.train_batch_size=8 data.max_prompt_length=16 data.max_response_length=16
    data.dataloader_num_workers=0 data.filter_overlong_prompts=False
    {MODEL}.enable_gradient_checkpointing=False +{MODEL}.override_config.attn_implementation=sdpa
    {" ".join(ON_CPU)} {" ".join(FIPO)} +{LOSS}.preset=7b
    {ACTOR}.ppo_mini_batch_size=4 {ACTOR}.ppo_micro_batch_size_per_gpu=4
    {ACTOR}.optim.lr=5e-3 {ACTOR}.clip_ratio_high=0.28 {ACTOR}.clip_ratio_c=10.0
    {ROLLOUT}.name={hf_rollout.NAME} {ROLLOUT}.n=4 {ROLLOUT}.tensor_model_parallel_size=1
    {ROLLOUT}.log_prob_micro_batch_size_per_gpu=4 {ROLLOUT}.agent.num_workers=1 {ROLLOUT}.free_cache_engine=False
    reward.custom_reward_function.path={toy.__file__} reward.num_workers=1
    trainer.device=cpu trainer.n_gpus_per_node=2 trainer.nnodes=1 trainer.logger=[console]
    trainer.val_before_train=False trainer.test_freq=-1 trainer.save_freq=-1 trainer.resume_mode=disable
    trainer.total_training_steps={STEPS}
    transfer_queue.backend.SimpleStorage.num_data_storage_units=1
    ray_kwargs.ray_init.num_cpus=16 +ray_kwargs.ray_init.include_dashboard=False
    +ray_kwargs.ray_init.object_store_memory=500000000
    +ray_kwargs.ray_init.num_gpus=2
"""  # two updates a rollout; the platform calls its two CPU ranks GPUs


def run(folder, *overrides):
    (folder / "credit").mkdir()
    model, prompts = tiny.save(folder / "model"), toy.write_prompts(folder / "prompts.jsonl")
    files = (f"{MODEL}.path={model}", f"data.train_files={prompts}", f"data.val_files={prompts}")
    environment = {"RAY_ADDRESS": "local", "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"VERL_FILE_LOGGER_PATH": str(folder / "credit" / "metrics.jsonl"), "WANDB_MODE": "offline"}
    command = ["verl.trainer.main_ppo", *COMMAND.split(), *files, *overrides]
    return run_on_cpu(command, modules="cpu_platform,hf_rollout", cwd=folder, env=environment)


def test_three_steps_with_metrics_traces_and_weights_that_leave_one(tmp_path):
    done = run(
        tmp_path,
        f"+{LOSS}.trace_dir={tmp_path / 'credit' / 'traces'}",
        f"+{LOSS}.trace_every=1",
        "trainer.logger=[console,file,wandb]",
        f"{MODEL}.external_lib=fipo.engines.verl.wandb_report",
    )
    assert done.returncode == 0, done.stdout[-5000:]
    lines = (tmp_path / "credit" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line)["data"] for line in lines]
    assert len(logged) == STEPS
    for metrics in logged:
        fipo = {name: metrics[f"actor/{name}"] for name in (*TOKEN_MEANS, "fipo/dropped_sequences")}
        assert {"actor/pg_clipfrac", "actor/pg_clipfrac_lower", "actor/ppo_kl"} < set(metrics)
        assert metrics["actor/grad_norm"] > 0
        # At a rollout's first update all weights are 1, so at most the second half of the tokens is at a bound.
        assert 0 < fipo["fipo/weight_at_low"] + fipo["fipo/weight_at_high"] <= 0.5
        assert fipo["fipo/weight_mean"] != pytest.approx(1, abs=1e-4)
    _check_traces(tmp_path / "credit")
    _check_curves(tmp_path / "credit")
    _check_wandb(tmp_path)


def _check_traces(folder):
    """The first rollout is counted, the other two are traced: 8 prompts of 4 completions, half of them at update 1."""
    traces = read_traces(folder)
    assert not traces.problems and traces.params == FIPOParams.preset("7b")
    assert {trace.rollout for trace in traces} == {2, 3}
    assert len({(trace.rollout, trace.sample) for trace in traces}) == len(traces) == 2 * 8 * 4
    groups = Counter((trace.rollout, trace.group) for trace in traces)
    assert set(groups.values()) == {4}
    for trace in traces:
        answer = re.sub(r"\[(EOS|PAD|UNK)\]", "", trace.text)
        assert trace.reward == pytest.approx(toy.compute_score(None, answer, None), abs=1e-6)
        assert "+" in trace.prompt
    assert Counter(trace.update for trace in traces) == {0: 32, 1: 32}
    assert max(np.abs(trace.weight - 1).max() for trace in traces if trace.update == 1) > 0.01
    assert traces.updates_per_rollout == 0  # verl's metrics have one step a rollout


def _check_curves(folder):
    """verl's file of metrics, drawn beside the traces."""
    metrics = read_metrics(folder / "metrics.jsonl", "verl")
    assert metrics.steps == "rollout" and not metrics.problems
    assert sorted(metrics.series["fipo/weight_mean"]) == [1, 2, 3]
    titles = {"Reward", "Response length", "Weights at the bounds", "Policy KL since the rollout"}
    titles.add("Weight: mean, and least to greatest")
    assert titles <= {chart["title"] for chart in draw_curves([metrics])}


def _check_wandb(folder):
    """The report of every traced rollout, at verl's own step."""
    pages = sorted(folder.glob("wandb/offline-run-*/files/media/html/**/*.html"))
    assert [re.search(r"credit_(\d+)_", page.name)[1] for page in pages] == ["2", "3"]
    assert all("rollout" in page.read_text() for page in pages)


def test_the_doctor_beside_a_verl_that_is_installed(capsys):
    assert main(["doctor", "verl", "--json"]) == 0
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert found["fipo's policy loss"]["found"] == "registered as fipo"


def test_one_update_a_rollout_is_refused_before_ray_starts(tmp_path):
    done = run(tmp_path, "data.train_batch_size=4")
    assert done.returncode != 0
    assert "A rollout of 4 prompts × 4 samples gives 1 update of 4 prompts" in done.stdout
    assert "ray init kwargs" not in done.stdout

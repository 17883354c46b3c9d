"""verl's configuration, composed as its own entry point does, for what the tests share."""

import os
import subprocess
import sys
from pathlib import Path

import verl
from hydra import compose, initialize_config_dir
from verl.utils.config import omega_conf_to_dataclass

CONFIGS = os.path.join(os.path.dirname(verl.__file__), "trainer", "config")
ACTOR = "actor_rollout_ref.actor"
LOSS = f"{ACTOR}.policy_loss"
FIPO = (f"{LOSS}._target_=fipo.engines.verl.FIPOPolicyLossConfig", f"{LOSS}.loss_mode=fipo")
ON_CPU = (  # what FSDP2 needs there
    f"{ACTOR}.strategy=fsdp2",
    f"{ACTOR}.use_torch_compile=False",
    f"{ACTOR}.fsdp_config.use_torch_compile=False",
    *(f"+{ACTOR}.fsdp_config.mixed_precision.{kind}_dtype=fp32" for kind in ("param", "reduce", "buffer")),
)


def composed(*overrides):
    with initialize_config_dir(CONFIGS, version_base=None):
        return compose("ppo_trainer", [f"{ACTOR}.ppo_micro_batch_size_per_gpu=2", *overrides])


def actor_config(*overrides):
    return omega_conf_to_dataclass(composed(*overrides).actor_rollout_ref.actor)


def run_on_cpu(arguments, modules="cpu_platform", **how):
    """A Python with verl on cpu_platform, which finds the modules of the tests; `how` is for subprocess.run."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "VERL_USE_EXTERNAL_MODULES": modules}
    environment |= {"VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda"}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 500} | how
    return subprocess.run([sys.executable, "-m", *arguments], env=environment | how.pop("env", {}), **how)

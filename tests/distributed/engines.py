"""Runs of `fipo train` that differ in the engine alone, and what they found."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import tiny

HERE = Path(__file__).parent
TIME = re.compile("time|_per_second$|^epoch$")
UPDATES, UPDATES_PER_ROLLOUT, SEQUENCES = 12, 4, 8  # of a run, of a rollout, of an update
COMMON = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0, "num_processes": 2}
FSDP2 = {"fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_cpu_ram_efficient_loading": False}
FSDP2 |= {"fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}
FSDP2["fsdp_state_dict_type"] = "SHARDED_STATE_DICT"
# ZeRO-3 leaves what is smaller than its thresholds whole.
SMALL = {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 1000}
SMALL |= {"stage3_max_live_parameters": 2000, "stage3_gather_16bit_weights_on_model_save": True}


def deepspeed(stage, **options):
    batch = {"train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto", "gradient_accumulation_steps": 1}
    plan = {"zero_optimization": {"stage": stage, **options}, "gradient_clipping": 1.0, **batch}
    return {"distributed_type": "DEEPSPEED", "plan": plan}


ENGINES = {  # engine → accelerate's configuration
    "ddp": {"distributed_type": "MULTI_GPU"},
    "fsdp2": {"distributed_type": "FSDP", "fsdp_config": FSDP2},
    "zero2": deepspeed(2),
    "zero3": deepspeed(3, **SMALL),
}
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}  # GiB; and no calls home
REWARD = """
def digits(completions, **_):
    return [sum(c.isdigit() for c in x[0]["content"]) / 8 for x in completions]
def begins_with_a_digit(completions, **_):
    return [float(x[0]["content"][:1].isdigit()) for x in completions]
"""


class Workshop:
    """A folder with models, data and a recipe in it, where runs are made."""

    def __init__(self, folder):
        self.folder = folder
        tiny.save(folder / "model")
        tiny.save(folder / "tied", tie_word_embeddings=True)
        tiny.save(folder / "wide", hidden_size=64, intermediate_size=128, num_attention_heads=2)  # vLLM's least head
        (folder / "reward.py").write_text(REWARD)
        rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(24)]
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = {"dataset": "data.jsonl", "rewards": ["python:reward:digits"], "eval_size": 4, "eval_k": 2}
        recipe |= {"num_generations": 4, "steps_per_generation": UPDATES_PER_ROLLOUT, "max_steps": UPDATES}
        recipe |= {"max_completion_length": 12, "learning_rate": 0.002, "lr_scheduler_type": "constant"}
        recipe |= {"use_cpu": True, "bf16": False, "dtype": "float32", "gradient_checkpointing": False}
        recipe |= {"logging_steps": 1, "save_steps": 6, "save_total_limit": 3, "fipo_trace_every": 2}
        recipe |= {"sample_every": 0, "report_to": "none"}
        (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML

    def start(self, name, engine=None, **options):
        """The process of a run: one process without an engine, else accelerate's launcher of two."""
        program, rows = [sys.executable], SEQUENCES
        if engine is not None:
            sharded_by_fsdp = ENGINES[engine]["distributed_type"] == "FSDP"
            recompute = sharded_by_fsdp and options.pop("gradient_checkpointing", False)  # it has a switch of its own
            config = self._config(engine, recompute)
            program = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
            program += ["--main_process_port", "0"]
            rows //= COMMON["num_processes"]
        settings = {"model_name_or_path": "model", "per_device_train_batch_size": rows, "output_dir": name, **options}
        flags = [f"--{key}={value}" for key, value in settings.items()]
        command = [*program, str(HERE / "on_cpu.py"), "train", "recipe.yaml", *flags]
        environment = {**os.environ, **VLLM, "UPDATES_PER_ROLLOUT": str(UPDATES_PER_ROLLOUT), "OMP_NUM_THREADS": "1"}
        environment["PYTHONFAULTHANDLER"] = "1"  # a crash in C++ tells where Python was
        environment["PYTHONPATH"] = f"{self.folder}{os.pathsep}{HERE.parent}"
        environment["TORCH_EXTENSIONS_DIR"] = str(self.folder / "extensions")
        with (self.folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def run(self, name, engine=None, **options):
        """A whole run; returns what it logged at each step."""
        process = self.start(name, engine, **options)
        code = process.wait(timeout=280)
        assert code == 0, (self.folder / f"{name}.log").read_text()[-4000:]
        return self.metrics(name)

    def killed_and_resumed(self, name, engine=None, **options):
        """The same of a run whose every process got kill −9 between two checkpoints, in the middle of a rollout."""
        process = self.start(name, engine, **options)
        while not (self.folder / name / "checkpoint-6").is_dir() or max(self.metrics(name)) < 7:
            assert process.poll() is None, (self.folder / f"{name}.log").read_text()[-4000:]
            time.sleep(0.05)
        launcher = psutil.Process(process.pid)
        for worker in [*launcher.children(recursive=True), launcher]:  # torch gives each a session of its own
            worker.kill()
        process.wait()
        assert max(self.metrics(name)) < UPDATES
        return self.run(name, engine, resume="true", **options)

    def metrics(self, name):
        """Step → what was logged at it; times are left out."""
        found = {}
        file = self.folder / name / "metrics.jsonl"
        for line in file.read_text().splitlines() if file.exists() else ():
            row = json.loads(line)
            found.setdefault(row["step"], {}).update({key: row[key] for key in row if not TIME.search(key)})
        return found

    def _config(self, engine, recompute):
        config = COMMON | ENGINES[engine]
        if recompute:
            config["fsdp_config"] = FSDP2 | {"fsdp_activation_checkpointing": True}
        if plan := config.pop("plan", None):
            (file := self.folder / f"{engine}_plan.json").write_text(json.dumps(plan))
            config["deepspeed_config"] = {"deepspeed_config_file": str(file), "zero3_init_flag": False}
        (path := self.folder / f"{engine}.yaml").write_text(json.dumps(config))
        return path


def assert_same_curve(found, expected, rel):
    assert found.keys() == expected.keys()
    for step in expected:
        assert found[step].keys() == expected[step].keys()
        assert found[step] == pytest.approx(expected[step], rel=rel, abs=1e-6, nan_ok=True), step

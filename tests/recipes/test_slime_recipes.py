"""The shell recipes for slime: what they would run, read word by word. SLIME_SRC holds them to slime's own source."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from support.shell_recipes import RECIPES, dry_run, start

from fipo import FIPOParams

SIZES = ["0.8B", "2B", "4B"]
ARMS = {"fipo": "slime/qwen3.5_fipo.sh", "grpo": "slime/qwen3.5_grpo.sh"}
REQUIRED = {"SLIME_DIR": "/shared/my slime", "MEGATRON_DIR": "/shared/megatron", "HF_CHECKPOINT": "/shared/models/qwen"}
REQUIRED |= {"PROMPT_DATA": "/shared/it's/train.jsonl", "EVAL_DATA": "/shared/eval.jsonl"}
needs_slime = pytest.mark.skipif("SLIME_SRC" not in os.environ, reason="SLIME_SRC names no checkout of slime")


def flags(words):
    """{flag: its values}; the last of a repeated flag wins, as in argparse."""
    found, values = {}, []
    for word in words:
        if re.match(r"--[a-z]", word):
            values = found[word] = []
        else:
            values.append(word)
    return found


def train_command(arm, size="0.8B", *arguments, **variables):
    """What follows `python3` in the submitted job."""
    job = dry_run(ARMS[arm], *arguments, MODEL_SIZE=size, **REQUIRED | variables)[-1]
    assert job[:3] == ["ray", "job", "submit"]
    start = job.index("--")
    assert job[start + 1] == "python3"
    return job[start + 2 :]


@pytest.mark.parametrize("script", sorted(RECIPES.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash_without_paths_of_a_machine(script):
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().splitlines()
    assert script.stat().st_mode & 0o111 or not lines[0].startswith("#!")
    body = "\n".join(line for line in lines if not line.startswith("#!"))
    assert not re.findall(r"""(?:^|[\s="'(:>-])(/(?!dev/null)[\w.]+|~/)""", body)


@pytest.mark.parametrize("size", SIZES)
def test_the_arms_differ_in_launcher_and_loss_alone_and_get_eight_updates_a_rollout(size):
    fipo, grpo = (train_command(arm, size, RUN_NAME="same") for arm in ARMS)
    assert fipo[:3] == ["-m", "fipo.engines.slime", "train.py"]
    assert grpo[0] == "/shared/my slime/train.py"
    fipo, grpo = flags(fipo[3:]), flags(grpo[1:])
    batch = ("--rollout-batch-size", "--n-samples-per-prompt", "--global-batch-size")
    prompts, samples, update = (int(fipo[flag][0]) for flag in batch)
    assert prompts * samples / update == 8
    assert fipo.pop("--loss-type") == ["fipo_loss"] and grpo.pop("--loss-type") == ["policy_loss"]
    weights = {flag: fipo.pop(flag) for flag in list(fipo) if flag.startswith("--fipo-")}
    assert weights["--fipo-dual-clip-c"] == grpo.pop("--eps-clip-c")
    assert fipo == grpo


@pytest.mark.parametrize("arm", ARMS)
def test_a_seed_reaches_training_and_rollouts_and_users_flags_come_last(arm):
    command = train_command(arm, "0.8B", "--lr", "5", SEED="5")
    assert command[-2:] == ["--lr", "5"] and (given := flags(command))["--wandb-project"] == ["fipo"]
    assert given["--seed"] == given["--rollout-seed"] == ["5"]
    assert given["--wandb-group"] == [f"Qwen3.5-0.8B-{arm}-s5"]
    assert not any("wandb" in word for word in train_command(arm, WANDB_PROJECT=""))


def test_the_weights_are_those_of_pull_request_1801():
    given = flags(train_command("fipo"))
    knobs = {flag[7:].replace("-", "_"): values for flag, values in given.items() if flag.startswith("--fipo-")}
    params = FIPOParams(**{name: float(values[0]) if values else True for name, values in knobs.items()})
    assert (params.weight_low, params.weight_high, params.safety_thresh) == (1.0, 1.28, 3.0)
    assert (params.decay_rate, params.dual_clip_c) == (32.0, 10.0)


DRY = {"DRY_RUN": "1"}
CANNOT_WORK = [
    *((arm, DRY | {name: ""}, rf"{name} is not set; set it to [^\n]+\.") for arm in ARMS for name in REQUIRED),
    ("fipo", DRY | {"ARM": "dapo"}, "ARM is dapo, but must be fipo, grpo, shuffled or uniform."),
    ("fipo", DRY | {"MODEL_SIZE": "9B"}, "MODEL_SIZE is 9B, but must be 0.8B, 2B or 4B."),
    ("fipo", DRY | {"NUM_NODES": "2"}, "NUM_NODES is 2, but .* start the cluster and set RAY_DASHBOARD."),
    ("fipo", {}, "SLIME_DIR is /shared/my slime, which does not exist here; set it to .*"),
]


@pytest.mark.parametrize(("arm", "variables", "sentence"), CANNOT_WORK)
def test_what_cannot_work_is_one_sentence(arm, variables, sentence):
    result = start(ARMS[arm], **REQUIRED | variables)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(f"qwen3.5_{arm}.sh: {sentence}\n", result.stderr)


def test_a_running_cluster_is_used():
    convert = ["env", "PYTHONPATH=/shared/megatron:/shared/my slime"]
    commands = [words[:2] for words in dry_run(ARMS["fipo"], **REQUIRED)]
    assert commands == [convert, ["ray", "start"], ["ray", "job"]]
    commands = dry_run(ARMS["fipo"], **REQUIRED, RAY_DASHBOARD="http://head:8265", NUM_NODES="2")
    assert [words[:2] for words in commands] == [convert, ["ray", "job"]]
    assert flags(commands[-1])["--address"] == ["http://head:8265"]
    assert flags(commands[-1])["--actor-num-nodes"] == ["2"]


@pytest.mark.parametrize("converted", [False, True])
def test_a_real_run_executes_what_the_dry_run_prints(tmp_path, converted):
    """With `ray` and `python3` that write down their words: quoting survives, and a converted model is kept."""
    variables = {name: str(tmp_path / f"a {name} 'b'") for name in REQUIRED}
    for path in variables.values():
        Path(path).mkdir()
    if converted:
        done = Path(variables["HF_CHECKPOINT"] + "_torch_dist", "latest_checkpointed_iteration.txt")
        done.parent.mkdir()
        done.write_text("release")
    log = tmp_path / "log"
    for name in ("ray", "python3"):
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >> {log}\necho >> {log}\n')
        program.chmod(0o755)
    result = start(ARMS["fipo"], **variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert result.returncode == 0, result.stderr
    ran = [line.split("\0")[:-1] for line in log.read_text().splitlines()]
    printed = dry_run(ARMS["fipo"], **variables)
    printed[0] = printed[0][2:]  # env PYTHONPATH=…
    assert ran == printed[converted:]
    environment = json.loads(flags(ran[-1])["--runtime-env-json"][0])
    assert environment["env_vars"]["PYTHONPATH"] == f"{variables['MEGATRON_DIR']}:{variables['SLIME_DIR']}"


@needs_slime
@pytest.mark.parametrize("size", ["0.8B", "4B"])
def test_model_arguments_are_slimes(size):
    source = Path(os.environ["SLIME_SRC"], f"scripts/models/qwen3.5-{size}.sh")
    script = ["bash", "-c", 'source "$0"; printf "%s\n" "${MODEL_ARGS[@]}"', source]
    printed = subprocess.run(script, capture_output=True, text=True, check=True)
    theirs, ours = flags(printed.stdout.split()), flags(train_command("fipo", size))
    assert {flag: ours.get(flag) for flag in theirs} == theirs
    convert = flags(dry_run(ARMS["fipo"], MODEL_SIZE=size, **REQUIRED)[0])
    assert set(convert) - set(theirs) == {"--hf-checkpoint", "--save"}


@needs_slime
def test_slime_has_every_function_and_file():
    """That its parsers know every flag, tests/engines/slime_train/test_slime_flags.py says."""
    slime, given = Path(os.environ["SLIME_SRC"]), flags(train_command("fipo"))
    for module, function in (given["--dynamic-sampling-filter-path"][0].rsplit(".", 1), given["--spec"]):
        assert f"def {function}(" in (slime / (module.replace(".", "/") + ".py")).read_text()
    assert f'rm_type == "{given["--rm-type"][0]}"' in (slime / "slime/rollout/rm_hub/__init__.py").read_text()
    assert (slime / "train.py").exists() and (slime / "tools/convert_hf_to_torch_dist.py").exists()

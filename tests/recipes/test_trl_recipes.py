"""Every shipped recipe parses, and its data, rewards and arithmetic pass a dry run."""

from pathlib import Path

import pytest

from fipo.run.recipe import parse_recipe, read_settings
from fipo.run.train import train

ROOT = Path(__file__).parents[2]
RECIPES = [*sorted((ROOT / "recipes" / "trl").glob("*.yaml")), ROOT / "experiments" / "larger_number" / "recipe.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dry_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = ["--output_dir", str(tmp_path), "--dry_run", "true", "--use_vllm", "false"]
    if path.stem not in ("demo", "recipe"):  # the hub is out of reach: a procedural task with the same columns
        flags += ["--dataset", "rg:chain_sum?size=4000", "--eval_dataset", ""]
        flags += ["--prompt_column", "prompt", "--answer_column", "answer"]
    run, config, model = parse_recipe(read_settings([str(path), *flags]))
    assert train(run, config, model) == 0
    assert "nothing was run" in capsys.readouterr().out


def test_the_papers_7b_run():
    flags = ["--use_vllm", "false", "--bf16", "false"]
    _, config, _ = parse_recipe(read_settings([str(ROOT / "recipes" / "trl" / "math_qwen2.5_7b.yaml"), *flags]))
    gpus = 8
    assert config.updates_per_rollout == 8
    assert gpus * config.generation_batch_size == 512 * 32
    assert (config.fipo_decay_rate, config.fipo_safety_thresh) == (32.0, 3.0)
    assert (config.fipo_params.weight_low, config.fipo_params.weight_high) == (0.8, 1.2)
    assert (config.max_completion_length, config.learning_rate, config.weight_decay) == (10240, 1e-6, 0.1)

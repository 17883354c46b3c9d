"""`fipo init`: a commented recipe for somebody's own model and data. What can be found out is not asked."""

import json
import math
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fipo.errors import DataError, InvalidParameterError
from fipo.messages import did_you_mean
from fipo.run.answers import answers_of, is_number
from fipo.run.data import PROCEDURAL, read_source

PROMPTS = ("prompt", "question", "problem", "query", "instruction", "input")
ANSWERS: tuple[str, ...] = ("answer", "solution", "final_answer", "ground_truth", "target", "label", "output")
ANSWERS += ("reward_model.ground_truth",)  # verl's
ALIGNED = 34  # the column of comments; in the template a tab stands before them
LOOKED_AT = 200  # rows, for what answers look like
BRIEF = "system_prompt: Answer with nothing but the answer.\t# delete it where prompts stay text"
THOUGHTFUL = "# system_prompt: Think step by step, and end with the answer."

SAMPLES = 8  # of a prompt
VLLM = "use_vllm: true\t# rollouts by vLLM in the same process\nvllm_mode: colocate" if find_spec("vllm") else ""
FLOAT16 = "fp16: true\t# bfloat16's rounding is larger than what small updates change: docs/precision.md"
ON_GPU: dict[str, Any] = {"most_held_out": 64, "most_prompts": 64, "most_in_a_batch": 16, "length": 1024}
ON_GPU |= {"max_steps": 400, "rate": "1.0e-5", "machine": f"{FLOAT16}\n{VLLM}"}
ON_CPU: dict[str, Any] = {"most_held_out": 16, "most_prompts": 8, "most_in_a_batch": 8, "length": 128}
ON_CPU |= {"max_steps": 80, "rate": "1.0e-4", "machine": "use_cpu: true\t# no GPU was found when this was written"}


def write_recipe(path: Path, model: str, dataset: str, **about: str | None) -> str:
    """Writes the recipe, which must not exist yet, and returns what to do next.

    `dataset` is read, to find out its columns and what answers look like. Of it may be said: `config`, `split`,
    `prompt_column` and `answer_column`.
    """
    if path.exists():
        raise InvalidParameterError(f"{path} exists already; name another file, or delete it.")
    as_written = [about.get("answer_column") or "", *ANSWERS]
    rows = read_source(dataset, about.get("config"), about.get("split") or "train", texts=as_written)
    columns = [*rows.column_names, *rows.flatten().column_names]  # those within columns too, with dots
    prompt = about.get("prompt_column") or next((name for name in PROMPTS if name in columns), None)
    answer = about.get("answer_column")
    if answer is None:
        answer = next((name for name in ANSWERS if name in columns and name != prompt), None)
    for name, kind, otherwise in ((prompt, "prompt", ""), (answer, "answer", ", or '' if no reward needs one")):
        if name not in columns and name != "":
            remedy = did_you_mean(str(name), columns, f"name it with --{kind}-column{otherwise}.")
            raise DataError(f"{dataset} has no column of {kind}s among {', '.join(rows.column_names)}; {remedy}")
    values = rows.take(min(LOOKED_AT, len(rows))).flatten()[answer] if answer else []
    reward = _reward(dataset, [text for value in values for text in _texts(value)])
    texts = {"model": model, "output": f"runs/{path.stem}", "dataset": dataset, "prompt": prompt, "answer": answer}
    template = files("fipo.run").joinpath("recipe.yaml.in").read_text(encoding="utf-8")
    recipe = template.format(
        rows=len(rows),
        more="".join(f"dataset_{key}: {json.dumps(about[key])}\n" for key in ("config", "split") if about.get(key)),
        system_prompt=BRIEF if reward == "exact" else THOUGHTFUL,
        **{name: json.dumps(text, ensure_ascii=False) for name, text in (texts | {"reward": reward}).items()},
        **_sizes(len(rows)),
    )
    aligned = re.sub("^(.*)\t", lambda line: f"{line[1]:<{ALIGNED - 1}} ", recipe, flags=re.MULTILINE)
    path.write_text(aligned, encoding="utf-8")
    said = f"{path}: {len(rows)} prompts, reward {reward}."
    if reward.startswith("python:"):
        said += " Write my_reward.py first, with `def score(completions, **columns)`, which returns a list of numbers."
    return f"{said} Next: fipo train {path} --dry_run true"


def _texts(value: Any) -> list[str]:
    try:
        return answers_of(value)
    except ValueError as error:
        raise DataError(f"The answer {str(value)[:80]!r} is {error}; name what is with --answer-column.") from error


def _reward(dataset: str, answers: list[str]) -> str:
    """What fits the answers: a task's own scorer, numbers, mathematics, or short texts."""
    if dataset.startswith(PROCEDURAL):
        return "reasoning_gym"
    if answers and all(is_number(text) or "####" in text for text in answers):  # GSM8K's mark of the number
        return "last_number"
    if any("\\" in text or "$" in text for text in answers):
        return "math"
    return "exact" if answers and max(map(len, answers)) < 40 else "python:my_reward:score"


def _sizes(rows: int) -> dict[str, object]:
    """Of a rollout and its updates, for a GPU or a CPU and for few prompts."""
    found = ON_GPU if torch.cuda.is_available() else ON_CPU
    eval_size = min(found["most_held_out"], rows // 5)
    prompts = min(found["most_prompts"], 2 ** int(math.log2(max(rows - eval_size, 1))))
    updates = min(8, prompts) if prompts > 1 else 2
    completions = prompts * SAMPLES // updates  # of an update
    batch = min(completions, found["most_in_a_batch"])
    steps = {"updates": updates, "accumulation": completions // batch, "steps": updates * (completions // batch)}
    return {**found, "eval_size": eval_size, "prompts": prompts, "samples": SAMPLES, "batch": batch, **steps}

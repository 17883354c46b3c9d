"""`fipo train --help`: the settings that matter, in groups; `--help-all`: every flag of TRL's too."""

import re
import shutil
import textwrap
from dataclasses import MISSING, Field, fields

from fipo.params import KNOBS
from fipo.run.arguments import CLASSES, Parser

GROUPS = {
    "Model": "model_name_or_path dtype use_peft lora_r gradient_checkpointing",
    "Data": "dataset prompt_column answer_column prompt_format",
    "Rewards": "rewards",
    "Rollout": "num_generations max_completion_length stop_character use_vllm",
    "Updates": "per_device_train_batch_size gradient_accumulation_steps steps_per_generation max_steps learning_rate",
    "FIPO": "fipo_preset fipo_decay_rate fipo_clip_ratio_low fipo_clip_ratio_high fipo_rule",
    "Evaluation": "eval_dataset eval_size eval_k",
    "Files": "output_dir report_to fipo_trace_every resume overwrite dry_run",
}
NAME = 31  # the width of the names


def print_help(everything: bool) -> int:
    """Returns the exit code."""
    if everything:
        print(Parser().format_help())
        return 0
    known = {entry.name: entry for kind in reversed(CLASSES) for entry in fields(kind)}
    print("fipo train recipe.yaml [--key value …], or fipo train --model_name_or_path … --dataset … --rewards …\n")
    print("Every key of a recipe is a flag, and a flag wins. `fipo init recipe.yaml` writes a recipe for your data.")
    for title, names in GROUPS.items():
        print(f"\n{title}")
        print(*(_entry(known[name]) for name in names.split()), sep="\n")
    print("\n`fipo train --help-all` lists every key, TRL's among them; docs/training.md explains fipo's.")
    return 0


def _entry(entry: Field) -> str:
    knob = KNOBS.get(entry.name.removeprefix("fipo_"))
    default = knob.default if knob else entry.default if entry.default is not MISSING else []
    shown = "" if default in (None, "", []) else f" [{default}]"
    told = " ".join((entry.metadata.get("help") or "").replace("`", "").split())
    first = re.split(r"(?<=[a-z)])\. ", told)[0]
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 120))
    return textwrap.fill(f"  {entry.name:<{NAME - 2}}{first}{shown}", width, subsequent_indent=" " * NAME)

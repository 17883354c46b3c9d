"""`fipo train --help`: fipo's own settings; `--help-all`: every flag of TRL's too."""

from dataclasses import MISSING, Field, fields

from trl import TrlParser

from fipo.run.arguments import ModelArguments, RunArguments
from fipo.trainer.config import FIPOConfig

OFTEN = (
    "output_dir, learning_rate, max_steps, num_generations, per_device_train_batch_size, beta, "
    "steps_per_generation, max_completion_length, temperature, use_vllm, report_to, save_steps, use_peft"
)


def print_help(everything: bool) -> int:
    """Returns the exit code."""
    if everything:
        print(TrlParser((RunArguments, FIPOConfig, ModelArguments), prog="fipo train").format_help())
        return 0
    own = [entry for entry in fields(FIPOConfig) if entry.name.startswith("fipo_")]
    print("fipo train recipe.yaml [--key value …], or fipo train --model_name_or_path … --dataset … --rewards …\n")
    print("Every key of a recipe is a flag. fipo's own:\n")
    for entry in (*fields(RunArguments), *own):
        print(f"  {_line(entry)}")
    print(f"\nOf TRL's GRPOConfig and ModelConfig, among others: {OFTEN}.")
    print("`fipo train --help-all` lists all of them; docs/training.md explains.")
    return 0


def _line(entry: Field) -> str:
    default = entry.default if entry.default is not MISSING else []
    shown = "" if default in (None, "", []) else f" [{default}]"
    return f"{entry.name:<30} {entry.metadata.get('help', '')}{shown}"

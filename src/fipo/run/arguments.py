"""What `fipo train` takes: fields of three dataclasses, each a key of a recipe and a flag, by TRL's parser."""

import re
import shutil
import textwrap
from argparse import Namespace
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from trl import ModelConfig, TrlParser

from fipo.errors import InvalidParameterError
from fipo.messages import did_you_mean
from fipo.params import KNOBS, Knob
from fipo.trainer.config import FIPOConfig

DTYPES = ("float32", "bfloat16", "float16", "float64")
REWARDS_HELP = "name, or {name: {option: value, weight: w}}; the first one decides accuracy."


def _key(default: Any, help: str, *choices: str) -> Any:
    return field(default=default, metadata={"help": help, **({"choices": choices} if choices else {})})


@dataclass
class RunArguments:
    """Data, rewards and evaluation of a run."""

    dataset: str = _key("", "rg:task, {rg:task: {option: value}}, a local file, or a hub dataset.")
    dataset_config: str | None = _key(None, "Configuration of a hub dataset.")
    dataset_split: str = _key("train", "Split of a hub dataset.")
    prompt_column: str = _key("prompt", "Column with text or chat messages.")
    answer_column: str = _key("answer", "Column with the answer; empty: there is none.")
    prompt_format: str = _key("auto", "chat, text, or auto: chat where there is a template.", "auto", "chat", "text")
    system_prompt: str | None = _key(None, "System message before every prompt.")
    chat_template: str | None = _key(None, "Jinja file that replaces the model's template.")
    stop_character: str = _key("", "A response ends with the first token that holds it, as a newline; empty: none.")
    max_prompt_length: int = _key(2048, "Longer prompts, in tokens, are left out.")

    rewards: list[str] = field(default_factory=list, metadata={"help": REWARDS_HELP})

    eval_dataset: str | None = _key(None, "Held-out prompts; default: part of dataset.")
    eval_split: str = _key("test", "Split of a hub dataset in eval_dataset.")
    eval_size: int = _key(64, "Number of held-out prompts at most; 0: no evaluation.")
    eval_k: int = _key(4, "Samples a held-out prompt, for avg@k and pass@k.")
    eval_every: int = _key(0, "Evaluate every so many updates; 0: only before and after.")
    sample_every: int = _key(10, "Print a completion every so many updates; 0: never.")

    resume: bool = _key(False, "Go on from the run's last checkpoint.")
    overwrite: bool = _key(False, "Delete another run's checkpoints in output_dir.")
    dry_run: bool = _key(False, "Check everything that needs no model, and stop.")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            is_text = isinstance(entry.default, str | None) and not entry.name.endswith("dataset")
            if is_text and not isinstance(value, str | type(entry.default)):
                raise InvalidParameterError(f"{entry.name} is {value!r}, but must be a text; change it.")
        for name, least in (("eval_size", 0), ("eval_k", 1), ("eval_every", 0), ("sample_every", 0)):
            Knob(default=0, low=least).checked(name, getattr(self, name))
        self.stop_character = {r"\n": "\n", r"\t": "\t"}.get(self.stop_character, self.stop_character)  # from a shell
        if len(self.stop_character) > 1:  # which may come in any number of tokens
            raise InvalidParameterError(
                f"stop_character is {self.stop_character!r}, but must be one character; choose its last one."
            )
        try:
            if self.chat_template:
                Path(self.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidParameterError(
                f"chat_template is {self.chat_template}, which cannot be read ({error}); name a Jinja file in UTF-8."
            ) from error


@dataclass
class ModelArguments(ModelConfig):
    """TRL's ModelConfig; `model_name_or_path` may also be a .gguf file or package:NAME."""

    dtype: str = _key("auto", "auto: float16 under adapters on a GPU, else float32.", "auto", *DTYPES)

    def __post_init__(self) -> None:
        super().__post_init__()
        only: Any = self.lora_target_modules  # type: ignore[has-type]
        # TRL makes a text of a list of one, and to PEFT a text is a pattern of whole names.
        if isinstance(only, str) and re.fullmatch(r"\w+", only):
            self.lora_target_modules = [only]


CLASSES = (RunArguments, FIPOConfig, ModelArguments)


class Parser(TrlParser):
    """TRL's, whose errors are one sentence."""

    def __init__(self) -> None:
        super().__init__(CLASSES, prog="fipo train", allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InvalidParameterError(f"{message.removeprefix('argument ')}; change it.")

    def values(self, recipe: dict[str, Any], flags: list[str]) -> Namespace:
        """The value of every key: a flag's, the recipe's, or the default. What is wrong is refused."""
        actions = {text.lstrip("-"): one for one in self._actions for text in one.option_strings if one.nargs != 0}
        known: dict[str, Any] = {}
        texts = []  # the recipe's values as flags, so that argparse converts and checks them
        for key, value in recipe.items():  # a recipe may write hyphens, and `preset`
            action = actions.get(key) or self._refuse(key)
            if action.dest in known:
                raise InvalidParameterError(f"The recipe holds {action.dest} in two spellings; drop one of them.")
            known[action.dest] = [value] if action.nargs == "+" and not isinstance(value, list) else value
            is_more_than_text = isinstance(value, list | dict | bool) and action.type is str  # as TRL's `str | dict`
            if value is not None and action.nargs != "+" and not is_more_than_text:
                is_no = value is False and "no" in (action.choices or ())  # what YAML makes of an unquoted no
                texts.append(f"--{key}={'no' if is_no else value}")
        self.set_defaults_with_config(**known)
        values, strays = self.parse_known_args([*texts, *flags])
        if strays and strays[0].startswith("--"):
            self._refuse(strays[0][2:].partition("=")[0])
        if strays:
            raise InvalidParameterError(f"{strays[0]} is no flag and no value of one; remove it.")
        return values

    def _refuse(self, key: str) -> NoReturn:
        names = [text.lstrip("-") for action in self._actions for text in action.option_strings]
        remedy = did_you_mean(key, names, "`fipo train --help` lists fipo's keys, --help-all all of them.")
        raise InvalidParameterError(f"{key} is no key of a recipe and no flag; {remedy}")


def parse(recipe: dict[str, Any], flags: list[str]) -> tuple[RunArguments, FIPOConfig, ModelArguments]:
    """The dataclasses, with all their own checks, whose errors are of many kinds."""
    parser = Parser()
    return parser.parse_dict(vars(parser.values(recipe, flags)))


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
    """`fipo train --help`: the settings that matter, in groups; `--help-all`: TRL's too. Returns the exit code."""
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
    help = " ".join((entry.metadata.get("help") or "").replace("`", "").split())
    first = re.split(r"(?<=[a-z)])\. ", help)[0]
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 120))
    return textwrap.fill(f"  {entry.name:<{NAME - 2}}{first}{shown}", width, subsequent_indent=" " * NAME)

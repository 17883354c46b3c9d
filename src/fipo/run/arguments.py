"""What `fipo train` takes beside the trainer's and the model's settings. Light: it is read before TRL is."""

from dataclasses import dataclass, field
from pathlib import Path

from fipo.errors import InvalidParameterError

PROMPT_FORMATS = ("auto", "chat", "text")


@dataclass
class RunArguments:
    """Data, rewards and evaluation of a run; every field is a key of a recipe and a flag of `fipo train`."""

    dataset: str = field(default="", metadata={"help": "rg:task?option=value, a local file, or a hub dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a hub dataset."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column with text or chat messages."})
    answer_column: str = field(default="answer", metadata={"help": "Column with the answer; empty: there is none."})
    prompt_format: str = field(
        default="auto",
        metadata={"help": "chat, text, or auto: text prompts become chat messages where there is a chat template."},
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message before every prompt."})
    chat_template: str | None = field(default=None, metadata={"help": "Jinja file that replaces the model's template."})
    stop_character: str = field(
        default="", metadata={"help": "A response ends with the first token that holds it, as a newline; empty: none."}
    )
    max_prompt_length: int = field(default=2048, metadata={"help": "Longer prompts, in tokens, are left out."})

    rewards: list[str] = field(
        default_factory=list,
        metadata={"help": "name or name?option=value&weight=w; the first one decides what counts as accurate."},
    )

    eval_split: str = field(default="test", metadata={"help": "Split of a hub dataset in eval_dataset."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Held-out prompts; default: part of dataset."})
    eval_size: int = field(default=64, metadata={"help": "Number of held-out prompts at most; 0: no evaluation."})
    eval_k: int = field(default=4, metadata={"help": "Samples a held-out prompt, for avg@k and pass@k."})
    eval_every: int = field(default=0, metadata={"help": "Evaluate every so many updates; 0: only before and after."})
    sample_every: int = field(default=10, metadata={"help": "Print a completion every so many updates; 0: never."})

    resume: bool = field(default=False, metadata={"help": "Go on from the run's last checkpoint."})
    overwrite: bool = field(default=False, metadata={"help": "Delete another run's checkpoints in output_dir."})
    dry_run: bool = field(default=False, metadata={"help": "Check everything that needs no model, and stop."})

    def __post_init__(self) -> None:
        if isinstance(self.rewards, str):  # `rewards: math` in a recipe
            self.rewards = [self.rewards]
        for name, least in (("eval_size", 0), ("eval_k", 1), ("eval_every", 0), ("sample_every", 0)):
            value = getattr(self, name)
            if value < least:
                raise InvalidParameterError(f"{name} is {value}, but must be at least {least}; change it.")
        self.stop_character = {r"\n": "\n", r"\t": "\t"}.get(self.stop_character, self.stop_character)  # from a shell
        if len(self.stop_character) > 1:
            raise InvalidParameterError(
                f"stop_character is {self.stop_character!r}, but must be one character: a longer text may come in any "
                "number of tokens; choose its last one."
            )
        if self.prompt_format not in PROMPT_FORMATS:
            raise InvalidParameterError(
                f"prompt_format is {self.prompt_format!r}, but must be one of {', '.join(PROMPT_FORMATS)}; change it."
            )
        if self.chat_template and not Path(self.chat_template).is_file():
            found = "is a folder" if Path(self.chat_template).is_dir() else "does not exist"
            raise InvalidParameterError(f"The chat template {self.chat_template} {found}, but must be a Jinja file.")

"""What `fipo train` takes about the model."""

import re
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig


@dataclass
class ModelArguments(ModelConfig):
    """TRL's ModelConfig; `model_name_or_path` may also be a .gguf file or package:NAME."""

    dtype: str = field(
        default="auto",
        metadata={"help": "float32, bfloat16 …; auto: bfloat16 under adapters where it is fast, else float32."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        only: Any = self.lora_target_modules  # type: ignore[has-type]
        # TRL makes a text of a list of one, and to PEFT a text is a pattern of whole names.
        if isinstance(only, str) and re.fullmatch(r"\w+", only):
            self.lora_target_modules = [only]

"""FIPO, Future-KL Influenced Policy Optimization: every token of a rollout gets its own credit. Needs torch alone."""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fipo.errors import DataError, FIPOError, InvalidInputError, InvalidParameterError
from fipo.params import FIPOParams

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # by torch; fipo does not need it

if TYPE_CHECKING:
    from fipo.core import (
        FIPOOutput,
        TokenCredit,
        fipo_loss,
        future_kl,
        head_logps,
        influence_weights,
        token_credit,
        token_mean,
    )

__version__ = "0.1.0"

__all__ = ["DataError", "FIPOError", "FIPOParams", "InvalidInputError", "InvalidParameterError"]
__all__ += ["FIPOOutput", "TokenCredit", "fipo_loss", "future_kl", "head_logps", "influence_weights"]
__all__ += ["token_credit", "token_mean"]

if not TYPE_CHECKING:  # who checks types shall see the names above, and no others

    def __getattr__(name: str) -> Any:
        """The mathematics imports torch, which takes a second: when it is used, and not for a command's --help."""
        if name in __all__ or name == "core":
            core = import_module("fipo.core")
            return core if name == "core" else getattr(core, name)
        raise AttributeError(f"module 'fipo' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

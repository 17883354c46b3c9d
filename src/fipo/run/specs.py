"""How recipes name datasets and rewards: `name` or `name?key=value&key=value`, as in `rg:chain_sum?max_terms=3`."""

import inspect
import math
from ast import literal_eval
from collections.abc import Callable
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import unquote

from fipo.errors import InvalidParameterError
from fipo.terminal import did_you_mean

TRUTHS = {"true": True, "True": True, "false": False, "False": False}


@dataclass(frozen=True)
class Spec:
    """A name and its options, as text."""

    name: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """
        >>> Spec.parse("overlong?buffer=64&weight=0.5")
        Spec(name='overlong', options={'buffer': '64', 'weight': '0.5'})
        """
        name, _, query = text.partition("?")
        options: dict[str, str] = {}
        for pair in filter(None, query.split("&")):
            key, equals, value = pair.partition("=")
            if not equals:
                raise InvalidParameterError(
                    f"{text!r} has the option {pair!r}, but options are key=value; add its value, with & and % escaped "
                    "as %26 and %25."
                )
            if key in options:
                raise InvalidParameterError(
                    f"{text!r} has the option {key} twice, but it can have one value; drop one."
                )
            options[key] = unquote(value)
        return cls(name, options)


def typed(options: dict[str, str], takes: Callable[..., Any], what: str) -> dict[str, Any]:
    """Options in the types that `takes` annotates; without an annotation a plain number is one, and text stays text.

    Args:
        options: As `Spec.parse` gives them.
        takes: A function or a dataclass; its parameters with a default, or keyword-only, are the options.
        what: How the error messages call it.

    Raises:
        InvalidParameterError: No such option, or one has another type.
    """
    if not options:
        return {}
    called = takes if inspect.isroutine(takes) else getattr(takes, "__init__" if inspect.isclass(takes) else "__call__")
    try:
        parameters = inspect.signature(takes).parameters
        hints = get_type_hints(called)
    except (TypeError, ValueError, NameError) as error:
        raise InvalidParameterError(
            f"The parameters of {what} cannot be read ({error}); name a plain function with annotations that exist."
        ) from error
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in options.keys() - parameters.keys():
        if not anything:
            choice = did_you_mean(name, parameters, f"it takes {', '.join(parameters) or 'none'}.")
            raise InvalidParameterError(f"{what} has no option {name!r}; {choice}")
    return {name: _converted(value, hints.get(name), f"{name} of {what}") for name, value in options.items()}


def number(text: str, what: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidParameterError(f"{what} is {text!r}, but must be a finite number; change it.")
    return value


def _converted(text: str, hint: Any, what: str) -> Any:
    kinds = [hint]
    if get_origin(hint) not in (list, tuple, dict, set):  # int | None and the like
        kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not NoneType]
    kind = kinds[0] if len(kinds) == 1 else None
    if kind is str:
        return text
    if text.lower() == "none" and NoneType in get_args(hint):
        return None
    if kind is bool or (kind is None and text in TRUTHS):
        if text not in TRUTHS:
            raise InvalidParameterError(f"{what} is {text!r}, but must be true or false; change it.")
        return TRUTHS[text]
    if kind is float:
        return number(text, what)
    if kind is int or kind is None:
        return _whole_or_text(text, what, whole=kind is int)
    return _literal(text, get_origin(kind) or kind, what)


def _whole_or_text(text: str, what: str, *, whole: bool) -> Any:
    for kind in (int,) if whole else (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value) and (whole or str(value) == text):  # 007 and 1e3 stay text
            return value
    if whole:
        raise InvalidParameterError(f"{what} is {text!r}, but must be a whole number; change it.")
    return text


def _literal(text: str, kind: Any, what: str) -> Any:
    """A list, a tuple or the like, as Python writes it."""
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text if not isinstance(kind, type) else _refuse(text, kind, what)
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    return value if not isinstance(kind, type) or isinstance(value, kind) else _refuse(text, kind, what)


def _refuse(text: str, kind: type, what: str) -> Any:
    raise InvalidParameterError(f"{what} is {text!r}, but must be a {kind.__name__} as Python writes it; change it.")

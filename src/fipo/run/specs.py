"""How recipes name datasets and rewards: `name` or `name?key=value&key=value`, as in `rg:chain_sum?max_terms=3`."""

from ast import literal_eval
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from fipo.errors import InvalidParameterError


@dataclass(frozen=True)
class Spec:
    """A name and its options. Option values are Python literals where they parse as such, else text."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """
        >>> Spec.parse("overlong?buffer=64&weight=0.5")
        Spec(name='overlong', options={'buffer': 64, 'weight': 0.5})
        """
        name, _, query = text.partition("?")
        options = {}
        for pair in filter(None, query.split("&")):
            key, equals, value = pair.partition("=")
            if not equals:
                raise InvalidParameterError(
                    f"{text!r} has the option {pair!r}, but options are key=value; add its value, with & and % escaped "
                    "as %26 and %25."
                )
            options[key] = _literal(unquote(value))
        return cls(name, options)


def _literal(text: str) -> Any:
    try:
        return literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text

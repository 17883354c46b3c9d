"""Parts of messages, and what comes out of models, dumps and files as a terminal may show it."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def printable(text: str) -> str:
    """Control characters, terminal escapes among them, are shown and not obeyed; one line. Lone surrogates too."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """What a library says about an error, as a part of a sentence: such messages may have several lines."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest_file(path: Path) -> str:
    """The remedy for a path where no file is: the file beside it that is spelled like it."""
    if not path.parent.is_dir():
        return f"check the path: there is no folder {path.parent}."
    beside = (entry.name for entry in path.parent.glob("*") if entry.is_file())
    return did_you_mean(path.name, beside, "check the path.")


def did_you_mean(word: str, choices: Iterable[str], otherwise: str) -> str:
    """The remedy for a mistyped word: the choice that is nearest to it, or `otherwise`."""
    near = get_close_matches(word, list(choices), n=1)
    return f"did you mean {near[0]}?" if near else otherwise

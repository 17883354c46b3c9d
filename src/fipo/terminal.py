"""What comes out of models, dumps and files, as a terminal may show it."""


def printable(text: str) -> str:
    """Control characters, terminal escapes among them, are shown and not obeyed; one line. Lone surrogates too."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

"""Repeated addition with three digits, written out: the columns that are added, the carries, and every running total.

A prompt gives a start, how often to add, and what: `158+02*967=`. Each line of the solution adds once, column by column
from the right, digit + digit + carry = two digits, of which the first is carried; it ends with the new total. As on a
counter, what is carried out of the last column is lost:

    a8+7+0=15,5+6+1=12,1+9+1=11:125
    b5+7+0=12,2+6+1=09,1+9+0=10:092

The reward is 1 where the last total is right and the response ended by itself, else 0; nothing else is looked at.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from fipo.errors import InvalidInputError

PAD, END = 0, 1
LABELS = "abcdefghijklmnop"  # of the lines
ALPHABET = "0123456789+*=,:\n" + LABELS
VOCABULARY = 2 + len(ALPHABET)
DIGITS, LIMIT = 3, 1000
HELD_OUT_SHARE = 10  # every tenth problem, by its checksum


@dataclass(frozen=True)
class Chain:
    """How long the problems' solutions are: so many lines of 32 tokens."""

    name: str
    lines: int

    @property
    def solution_tokens(self) -> int:
        """Of a written-out solution with its end token; the same for every problem."""
        return len(Problem(0, 0, self).solution) + 1

    @property
    def max_tokens(self) -> int:
        """How long a response may get: an eighth more than the solution."""
        return self.solution_tokens * 9 // 8


SHORT, LONG = Chain("short", lines=2), Chain("long", lines=16)
CHAINS = {chain.name: chain for chain in (SHORT, LONG)}


@dataclass(frozen=True)
class Problem:
    """(start + lines · step) mod 1000."""

    start: int
    step: int
    chain: Chain

    @property
    def prompt(self) -> str:
        """Of the same length for all problems, so that prompts need no padding."""
        return f"{self.start:03}+{self.chain.lines:02}*{self.step:03}="

    @property
    def solution(self) -> str:
        total, lines = self.start, []
        for label in LABELS[: self.chain.lines]:
            columns, total = _columns(total, self.step), (total + self.step) % LIMIT
            lines.append(f"{label}{columns}:{total:03}")
        return "\n".join(lines)

    @property
    def answer(self) -> str:
        return f"{(self.start + self.chain.lines * self.step) % LIMIT:03}"

    @property
    def held_out(self) -> bool:
        """Whether the problem belongs to the held-out tenth, which no training ever sees."""
        return zlib.crc32(self.prompt.encode()) % HELD_OUT_SHARE == 0


def reward(problem: Problem, response: str, *, ended: bool) -> float:
    """1.0 where the response ended by itself and has the answer, digit for digit, after its last colon; else 0.0."""
    return float(ended and ":" in response and response.rpartition(":")[2] == problem.answer)


def sample_problem(chain: Chain, generator: random.Random, *, held_out: bool) -> Problem:
    """A problem of the asked side of the split, uniform over it."""
    while True:
        problem = Problem(generator.randrange(LIMIT), generator.randrange(LIMIT), chain)
        if problem.held_out == held_out:
            return problem


def encode(text: str) -> list[int]:
    """Ids of the characters.

    Raises:
        InvalidInputError: A character is not in the alphabet.
    """
    unknown = set(text) - set(ALPHABET)
    if unknown:
        raise InvalidInputError(
            f"The text holds {sorted(unknown)}, but the task's alphabet is {ALPHABET!r}; remove what is not in it."
        )
    return [2 + ALPHABET.index(character) for character in text]


def decode(ids: Sequence[int]) -> str:
    """The characters up to the first end or padding token."""
    text = ""
    for token in ids:
        if token in (PAD, END):
            break
        text += ALPHABET[token - 2]
    return text


def _columns(left: int, right: int) -> str:
    """`8+7+0=15,5+6+1=12,1+9+1=11`."""
    columns, carry = [], 0
    for column in range(DIGITS):
        a, b = left // 10**column % 10, right // 10**column % 10
        columns.append(f"{a}+{b}+{carry}={a + b + carry:02}")
        carry = (a + b + carry) // 10
    return ",".join(columns)

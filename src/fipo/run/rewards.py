"""Rewards by name. Each scores one completion; a sample whose reward raises is reported and left out of the loss."""

import inspect
import json
import logging
import math
import re
import reprlib
import traceback
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fipo.errors import FIPOError, InvalidParameterError
from fipo.functions import function_of
from fipo.messages import did_you_mean, one_line, printable
from fipo.run.answers import answers_of, last_number
from fipo.run.recipe import name_and_options

logger = logging.getLogger(__name__)

Score = Callable[..., float]  # (completion: str, *, row: dict, length: int) -> float; length in tokens
PROMPTS_IN_A_ROW = 4  # failed in one call; then the cause lies outside the data, and each more might cost a timeout
TAKEN = frozenset(  # by TRL, so no column of the data may be called so
    ["self", "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"]
)
# Tasks of reasoning-gym 0.1.25 whose scorers call nothing that could run what a model writes; a test reads them.
SAFE_TASKS = frozenset(files("fipo.run").joinpath("safe_tasks.txt").read_text(encoding="utf-8").split())


class Reward:
    """One named reward in the form that TRL calls: a list of completions in, a list of floats or None out.

    None means that the reward does not apply to a sample, or that scoring it raised: `failed` marks the latter in the
    last call, `failures` counts them, and the first one's traceback is logged.

    A recipe names it `math`, or `{overlong: {buffer: 3, weight: 0.25}}`; `overlong` is limited to
    `max_completion_length` tokens unless its options say otherwise.
    """

    def __init__(self, written: Any, *, max_completion_length: int) -> None:
        name, options = name_and_options(written, "A reward")
        self.weight = weight = options.pop("weight", 1)
        if type(weight) not in (int, float) or not math.isfinite(weight):
            raise InvalidParameterError(
                f"weight of the reward {name!r} is {weight!r}, but must be a finite number; change it."
            )
        is_own = name.startswith("python:")
        self.__name__ = name.rpartition(":")[2] if is_own else name
        self._is_math = name == "math"
        self._batch = _of_ones_own(name, options) if is_own else _built_in(name, options, max_completion_length)
        self.failed: list[bool] = []
        self.failures = 0

    def __call__(self, completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        batch = {"completions": list(completions), "completion_ids": completion_ids, **columns}
        self.failed = [False] * len(completions)
        try:
            return self._scores(batch)
        except ScoringError:  # find out which samples it is
            return self._one_by_one(batch)

    def try_on(self, row: dict[str, Any], prompts: list[Any], *, strict: bool) -> float | None:
        """The score of a row's own answer as the completion, or of an empty one where the data have none.

        The prompts are the forms that the row's may get; the first that the reward can score with counts. Refuses a
        reward that returned no score; or that raised, if `strict`: else what it calls may be back when it counts.
        """
        text = next(iter(answers_of(row.get("answer"))), "")
        if self._is_math and not _marks_latex(text):
            text = f"\\boxed{{{text}}}"
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        for prompt in prompts:
            tried = {"completions": [as_completion(text, prompt)], "completion_ids": [text.split()]}
            try:
                return self._scores({"prompts": [prompt], **columns, **tried})[0]
            except ScoringError as error:
                failure = error
        if strict or failure.__cause__ is None:
            raise InvalidParameterError(
                f"The reward {self.__name__} {failure}, for the completion {text!r} of the first prompt; repair it, "
                "and try others with `fipo test-reward`."
            ) from failure
        return None

    def _one_by_one(self, batch: dict[str, Any]) -> list[float | None]:
        size = len(self.failed)
        scores: list[float | None] = [None] * size
        prompts = batch.get("prompts", range(size))
        failing: set[str] = set()  # prompts, since the last sample that could be scored
        for index in range(size):
            single = {
                name: [value[index]] if isinstance(value, list) and len(value) == size else value
                for name, value in batch.items()
            }
            try:
                if len(failing) < PROMPTS_IN_A_ROW:
                    (scores[index],) = self._scores(single)
                    failing.clear()
                    continue
            except ScoringError as error:
                failing.add(str(prompts[index]))
                if not self.failures:
                    warning = f"Reward {self.__name__} {error}; its samples are counted and left out of the loss."
                    cause = traceback.format_exception(error.__cause__) if error.__cause__ else []
                    logger.warning("\n".join(map(printable, [warning, *"".join(cause).splitlines()])))
            self.failures += 1
            self.failed[index] = True
        return scores

    def _scores(self, batch: dict[str, Any]) -> list[float | None]:
        expected = len(batch["completions"])
        try:
            returned = self._batch(**batch)
            scores: list[Any] = list(returned)  # it may be an iterator
        except FIPOError:
            raise
        except (Exception, SystemExit) as error:  # a reward may raise anything
            raise ScoringError(f"raised {type(error).__name__}: {one_line(error)}") from error
        if len(scores) != expected and not isinstance(returned, str | dict):  # never the data's fault: no sample's
            raise InvalidParameterError(
                f"The reward {self.__name__} returned {len(scores)} scores for {expected} completions, but must return "
                "one for each; repair it."
            )
        try:
            scores = [None if score is None else math.fsum([score]) for score in scores]  # float() would take texts
            if isinstance(returned, dict) or not all(score is None or math.isfinite(score) for score in scores):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            shown = reprlib.repr(returned)
            raise ScoringError(f"returned {shown}, but must return a list of finite numbers") from None
        return scores


class ScoringError(Exception):
    """A reward raised, which is the cause, or returned what are no scores; the message begins with a verb."""


def load_rewards(written: list[Any], *, max_completion_length: int) -> list[Reward]:
    """The rewards of a recipe, in its order; the first one decides what counts as accurate."""
    if not written:
        raise InvalidParameterError(f"rewards is empty, but training needs one; name one of {', '.join(BUILT_IN)}.")
    rewards = [Reward(one, max_completion_length=max_completion_length) for one in written]
    seen: Counter[str] = Counter()
    for reward in rewards:  # metrics go by name
        seen[name := reward.__name__] += 1
        reward.__name__ += f"_{seen[name]}" * (seen[name] > 1)
    return rewards


def text_of(completion: Any) -> str:
    """The text of a completion in TRL's plain or conversational form."""
    return completion if isinstance(completion, str) else "".join(turn.get("content") or "" for turn in completion)


def as_completion(text: str, prompt: Any) -> Any:
    """A completion in the form that TRL gives rewards: text after a text, chat messages after chat messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _of_ones_own(name: str, options: dict[str, Any]) -> Callable[..., list[float]]:
    function = function_of(name, "A reward")
    try:
        parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):  # of C
        parameters = []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in optional}

    def called(**batch: Any) -> list[float]:
        if missing := needed - TAKEN - options.keys() - batch.keys():
            raise InvalidParameterError(
                f"The reward {name!r} reads {', '.join(sorted(missing))}, but the data's columns are "
                f"{', '.join(sorted(batch.keys() - TAKEN)) or 'none'} beside the prompt; rename the column or the "
                "parameter, set answer_column, or give an option behind the name, as in {name: {option: value}}."
            )
        return function(**batch, **options)

    return called


def _built_in(name: str, options: dict[str, Any], max_completion_length: int) -> Callable[..., list[float]]:
    if name not in BUILT_IN:
        known = f"use one of {', '.join(BUILT_IN)} or python:package.module:function."
        raise InvalidParameterError(f"The reward {name!r} is unknown; {did_you_mean(name, BUILT_IN, known)}")
    if name == "overlong":
        options = {"limit": max_completion_length} | options
    try:
        score = BUILT_IN[name](**options)
    except (TypeError, ValueError, re.error) as error:
        takes = ", ".join(inspect.signature(BUILT_IN[name]).parameters) or "none"
        raise InvalidParameterError(
            f"The reward {name!r} does not take {options} ({one_line(error)}); its options: {takes}."
        ) from error

    def scored(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        lists = {key: value for key, value in columns.items() if isinstance(value, list) and value}
        rows = ({key: value[index] for key, value in lists.items()} for index in range(len(completions)))
        each = zip(completions, completion_ids, rows, strict=True)
        return [score(text_of(completion), row=row, length=len(ids)) for completion, ids, row in each]

    return scored


def _answers(row: dict[str, Any]) -> list[str]:
    """The texts that are right, at least one."""
    if "answer" not in row:
        raise InvalidParameterError(
            "A reward compares with an answer, but the data have no such column; name it with answer_column, or choose "
            "another reward."
        )
    if not (found := answers_of(row["answer"])):
        raise ValueError("the row has no answer")
    return found


def _marks_latex(text: str) -> bool:
    """Whether the text says where its mathematics begins."""
    return any(mark in text for mark in ("$", "\\boxed", "\\(", "\\["))


def _math() -> Score:
    """1 if the completion's final expression equals the answer mathematically (the package math-verify)."""
    from math_verify import parse, verify

    def read(answer: str) -> Any:
        # Bare LaTeX is no mathematics to `parse`, which then takes the first number in it.
        ways = [f"${answer}$", answer]
        gold = next(filter(None, map(parse, reversed(ways) if _marks_latex(answer) else ways)), None)
        if not gold:
            raise ValueError(f"the answer {answer!r} is not mathematics")
        return gold

    def score(completion: str, *, row: dict[str, Any], length: int) -> float:
        golds, found = [read(answer) for answer in _answers(row)], parse(completion)
        return float(any(verify(gold, found) for gold in golds))

    return score


def _last_number() -> Score:
    """1 if the last number in the completion equals the last one in the answer, exactly."""

    def score(completion: str, *, row: dict[str, Any], length: int) -> float:
        golds, found = [last_number(answer) for answer in _answers(row)], last_number(completion)
        if None in golds:
            raise ValueError(f"the answer {row['answer']!r} holds no number")
        return float(found in golds)

    return score


def _exact() -> Score:
    """1 if the completion is the answer, but for white space at the ends."""
    return lambda completion, *, row, length: float(completion.strip() in map(str.strip, _answers(row)))


def _regex(pattern: str) -> Score:
    """1 if the pattern is found; a group named `answer`, where there is one, must then equal the answer."""
    if pattern == "":
        raise ValueError("the pattern is empty, so everything would match")
    compiled = re.compile(pattern, re.DOTALL)
    compares = "answer" in compiled.groupindex

    def score(completion: str, *, row: dict[str, Any], length: int) -> float:
        right = [answer.strip() for answer in _answers(row)] if compares else []
        found = compiled.search(completion)
        return float(found is not None and (not compares or (found["answer"] or "").strip() in right))

    return score


def _reasoning_gym(allow_eval: bool = False) -> Score:
    """The task's own score in [0, 1], for datasets named `rg:…`; of what stands in <answer> tags, where there are."""
    from reasoning_gym import get_score_answer_fn
    from reasoning_gym.utils import extract_answer

    if not isinstance(allow_eval, bool):
        raise ValueError(f"allow_eval is {allow_eval!r}, but must be true or false")

    def score(completion: str, *, row: dict[str, Any], length: int) -> float:
        if "reasoning_gym" not in row:
            raise InvalidParameterError(
                "The reward reasoning_gym scores datasets named rg:task alone, and this one has no column "
                "reasoning_gym; choose another reward, or the dataset rg:…."
            )
        entry = json.loads(row["reasoning_gym"])
        task = entry["metadata"]["source_dataset"]
        if not allow_eval and task not in SAFE_TASKS:
            raise InvalidParameterError(
                f"reasoning-gym's scorer of {task} calls eval or the like, or was not read, so that what the model "
                "writes may run as code; choose another task, or write the reward {reasoning_gym: {allow_eval: true}} "
                "where that is safe."
            )
        return get_score_answer_fn(task)(extract_answer(completion) or completion.strip(), entry)

    return score


def _overlong(limit: int, buffer: int | None = None) -> Score:
    """DAPO's soft penalty: 0 up to limit − buffer tokens, then linearly down to −1 at limit."""
    span = limit // 5 if buffer is None else buffer
    if not isinstance(span, int) or not isinstance(limit, int) or not 0 < span <= limit:
        raise ValueError(f"buffer is {span}, but must be a whole number of tokens from 1 to the limit, {limit}")
    return lambda completion, *, row, length: max(-1.0, min(0.0, (limit - span - length) / span))


BUILT_IN: dict[str, Callable[..., Score]] = {
    "math": _math,
    "last_number": _last_number,
    "exact": _exact,
    "regex": _regex,
    "reasoning_gym": _reasoning_gym,
    "overlong": _overlong,
}

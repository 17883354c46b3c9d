"""Rewards by name. Each scores one completion; a sample whose reward raises is reported and left out of the loss."""

import importlib
import inspect
import logging
import math
import re
import reprlib
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from fipo.errors import FIPOError, InvalidParameterError
from fipo.run.safe_tasks import SAFE_TASKS
from fipo.run.specs import Spec, number, typed
from fipo.terminal import did_you_mean, one_line

logger = logging.getLogger(__name__)

Score = Callable[..., float]  # (completion: str, *, row: dict, length: int) -> float; length in tokens
PROMPTS_IN_A_ROW = 4  # failed in one call; then the cause lies outside the data, and each more might cost a timeout
TAKEN = {  # by TRL, so no column of the data may be called so
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
}
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class _NoAnswerError(LookupError):
    """The data have no answer to compare with."""


class UnusableScoresError(ValueError):
    """A reward returned something that is not a finite score for each completion; the message begins with a verb."""


def _what_happened(error: BaseException) -> str:
    if isinstance(error, UnusableScoresError):
        return str(error)
    return f"raised; the first traceback:\n{traceback.format_exc()}"


class Reward:
    """One named reward in the form that TRL calls: a list of completions in, a list of floats or None out.

    None means that the reward does not apply to a sample, or that scoring it raised: `failed` marks the latter in the
    last call, `failures` counts them, and the first one's traceback is logged.
    """

    def __init__(self, spec: Spec, *, max_completion_length: int) -> None:
        options = dict(spec.options)
        self.weight = number(options.pop("weight", "1"), f"weight of the reward {spec.name!r}")
        self.__name__ = spec.name.rpartition(":")[2] if spec.name.startswith("python:") else spec.name
        self._batch = _batch_function(spec.name, options, max_completion_length)
        self.failed: list[bool] = []
        self.failures = 0

    def __call__(self, completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        batch = {"completions": list(completions), "completion_ids": completion_ids, **columns}
        self.failed = [False] * len(completions)
        try:
            return self._checked(self._batch(**batch), len(completions))
        except FIPOError:
            raise
        except (Exception, SystemExit):  # find out which samples it is; a reward may raise anything
            return self._one_by_one(batch)

    def try_on(self, row: dict[str, Any], prompts: list[Any], *, strict: bool) -> float | None:
        """The score of a prompt's own answer as the completion, or of an empty one where the data have none.

        Args:
            row: Of the data.
            prompts: The forms that its prompt may get; what is scored in one of them is scored.
            strict: Whether a reward that raises is refused. Otherwise its score is None: what it calls may be back
                when it counts.

        Raises:
            InvalidParameterError: It returned no score, or raised.
        """
        text = str(row.get("answer", ""))
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        columns |= {"completion_ids": [text.split()]}
        failure: BaseException | None = None
        for prompt in prompts:
            try:
                scores = self._batch(completions=[as_completion(text, prompt)], prompts=[prompt], **columns)
                return self._checked(scores, 1)[0]
            except FIPOError:
                raise
            except (Exception, SystemExit) as error:
                failure = error
        if isinstance(failure, UnusableScoresError):
            raise InvalidParameterError(f"The reward {self.__name__} {str(failure).removesuffix('.')}; repair it.")
        if strict and failure is not None:
            raise InvalidParameterError(
                f"The reward {self.__name__} raised for the completion {text!r} of the first prompt "
                f"({type(failure).__name__}: {one_line(failure)}); repair it, and try others with `fipo test-reward`."
            ) from failure
        return None

    def _one_by_one(self, batch: dict[str, Any]) -> list[float | None]:
        scores: list[float | None] = []
        prompts = batch.get("prompts", range(len(self.failed)))
        failing: set[str] = set()  # prompts, since the last sample that could be scored
        for index in range(len(self.failed)):
            if len(failing) == PROMPTS_IN_A_ROW:
                rest = len(self.failed) - index
                self.failed[index:] = [True] * rest
                self.failures += rest
                return scores + [None] * rest
            scores.append(self._one(batch, index))
            if self.failed[index]:
                failing.add(str(prompts[index]))
            else:
                failing.clear()
        return scores

    def _one(self, batch: dict[str, Any], index: int) -> float | None:
        single = {
            name: [value[index]] if isinstance(value, list) and len(value) == len(batch["completions"]) else value
            for name, value in batch.items()
        }
        try:
            return self._checked(self._batch(**single), 1)[0]
        except FIPOError:
            raise
        except (Exception, SystemExit) as error:
            if not self.failures:
                logger.warning(
                    f"Reward {self.__name__} {_what_happened(error)} Its samples are counted and left out of the loss."
                )
            self.failures += 1
            self.failed[index] = True
            return None

    def _checked(self, scores: Any, expected: int) -> list[float | None]:
        try:
            if isinstance(scores, str | dict):
                raise TypeError
            scores = list(scores)  # a reward may return an iterator
            if any(isinstance(score, str) for score in scores):
                raise TypeError
            scores = [None if score is None else float(score) for score in scores]
        except (TypeError, ValueError, OverflowError):
            raise UnusableScoresError(f"returned {reprlib.repr(scores)}, but must return a list of numbers.") from None
        if len(scores) != expected:  # never the data's fault, so not to be tried sample by sample
            raise InvalidParameterError(
                f"The reward {self.__name__} returned {len(scores)} scores for {expected} completions, but must return "
                "one for each; repair it."
            )
        if not all(score is None or math.isfinite(score) for score in scores):
            raise UnusableScoresError(f"returned {reprlib.repr(scores)}, but scores must be finite.")
        return scores


def load_rewards(names: list[str], *, max_completion_length: int) -> list[Reward]:
    """The rewards of a recipe, in its order; the first one decides what counts as accurate.

    Raises:
        InvalidParameterError: An unknown reward, a wrong option or a function that cannot be imported.
    """
    if not names:
        raise InvalidParameterError(f"rewards is empty, but training needs one; name one of {', '.join(BUILT_IN)}.")
    rewards = [Reward(Spec.parse(name), max_completion_length=max_completion_length) for name in names]
    seen: dict[str, int] = {}
    for reward in rewards:  # metrics go by name
        seen[reward.__name__] = seen.get(reward.__name__, 0) + 1
        if seen[reward.__name__] > 1:
            reward.__name__ += f"_{seen[reward.__name__]}"
    return rewards


def text_of(completion: Any) -> str:
    """The text of a completion in TRL's plain or conversational form."""
    return completion if isinstance(completion, str) else "".join(turn.get("content") or "" for turn in completion)


def as_completion(text: str, prompt: Any) -> Any:
    """A completion in the form that TRL gives rewards: text after a text, chat messages after chat messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _batch_function(name: str, options: dict[str, str], max_completion_length: int) -> Callable[..., list[float]]:
    if name.startswith("python:"):
        function = _imported(name)
        extra = typed(options, function, f"the reward {name!r}")
        needed = _needed(function) - TAKEN - extra.keys()

        def called(**batch: Any) -> list[float]:
            _require_columns(name, needed, batch)
            return function(**batch, **extra)

        return called
    if name not in BUILT_IN:
        known = f"use one of {', '.join(BUILT_IN)} or python:package.module:function."
        raise InvalidParameterError(f"The reward {name!r} is unknown; {did_you_mean(name, BUILT_IN, known)}")
    if name == "overlong":
        options.setdefault("limit", str(max_completion_length))
    if name == "regex" and "pattern" not in options:
        raise InvalidParameterError("The reward 'regex' needs a pattern; write regex?pattern=….")
    score = BUILT_IN[name](**typed(options, BUILT_IN[name], f"the reward {name!r}"))

    def scored(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        rows = [
            {key: value[i] for key, value in columns.items() if isinstance(value, list) and len(value) > i}
            for i in range(len(completions))
        ]
        try:
            return [
                score(text_of(completion), row=row, length=len(ids))
                for completion, row, ids in zip(completions, rows, completion_ids, strict=True)
            ]
        except _NoAnswerError:
            raise InvalidParameterError(
                f"The reward {name!r} compares with an answer, but the data have no such column; name it with "
                "answer_column, or choose another reward."
            ) from None

    return scored


def _imported(name: str) -> Callable[..., list[float]]:
    module_name, _, function_name = name.removeprefix("python:").partition(":")
    try:
        function = getattr(_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidParameterError(
            f"The reward {name!r} cannot be imported ({error}); write python:package.module:function and start from "
            "the folder that holds the package."
        ) from error
    except (Exception, SystemExit) as error:  # the module itself is broken
        raise InvalidParameterError(
            f"The module of the reward {name!r} cannot be imported: {type(error).__name__}: {error}; repair it."
        ) from error
    if not callable(function):
        raise InvalidParameterError(f"The reward {name!r} is a {type(function).__name__}, but must be a function.")
    if inspect.iscoroutinefunction(function):
        raise InvalidParameterError(f"The reward {name!r} is a coroutine, but must be a plain function; wrap it.")
    return function


def _module(name: str) -> ModuleType:
    """A module, from the folder that one starts in if it lies there. Of that folder's other files libraries come first:
    a script called datasets.py is not what TRL wants to import."""
    here, top = str(Path.cwd()), name.partition(".")[0]
    if here not in sys.path:
        sys.path.append(here)
    spec = PathFinder.find_spec(top, [here])
    if top not in sys.modules and spec is not None and spec.loader is not None:
        sys.modules[top] = module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[top])
        except BaseException:
            del sys.modules[top]
            raise
    return importlib.import_module(name)


def _needed(function: Callable[..., Any]) -> set[str]:
    """The parameters that it cannot do without."""
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # of C
        return set()
    return {p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _require_columns(name: str, needed: set[str], batch: dict[str, Any]) -> None:
    missing = needed - batch.keys()
    if missing:
        columns = batch.keys() - TAKEN
        raise InvalidParameterError(
            f"The reward {name!r} reads {', '.join(sorted(missing))}, but the data's columns are "
            f"{', '.join(sorted(columns)) or 'none'} beside the prompt; rename the column or the parameter, set "
            "answer_column, or give an option behind the name, as in name?option=value."
        )


def _answer(row: dict[str, Any]) -> str:
    if "answer" not in row:
        raise _NoAnswerError
    return str(row["answer"])


def _math() -> Score:
    """1 if the completion's final expression equals the answer mathematically (the package math-verify)."""
    from math_verify import parse, verify

    def score(completion: str, *, row: dict[str, Any], length: int) -> float:
        answer = _answer(row)
        gold = parse(answer) or parse(f"${answer}$")
        if not gold:
            raise ValueError(f"the answer {answer!r} is not mathematics")
        return float(verify(gold, parse(completion)))

    return score


def _last_number() -> Score:
    """1 if the last number in the completion equals the last one in the answer."""

    def last(text: str) -> float | None:
        numbers = NUMBER.findall(text)
        return float(numbers[-1].replace(",", "")) if numbers else None

    def score(completion: str, *, row: dict[str, Any], length: int) -> float:
        gold = last(_answer(row))
        if gold is None:
            raise ValueError(f"the answer {row['answer']!r} holds no number")
        return float(last(completion) == gold)

    return score


def _exact() -> Score:
    """1 if the completion is the answer, but for white space at the ends."""
    return lambda completion, *, row, length: float(completion.strip() == _answer(row).strip())


def _regex(pattern: str) -> Score:
    """1 if the pattern is found; a group named `answer`, where there is one, must then equal the answer."""
    try:
        compiled = re.compile(str(pattern), re.DOTALL)
    except re.error as error:
        raise InvalidParameterError(f"pattern is {pattern!r}, which is no regular expression: {error}.") from error

    def score(completion: str, *, row: dict[str, Any], length: int) -> float:
        answer = _answer(row) if "answer" in compiled.groupindex else None
        found = compiled.search(completion)
        if found is None or answer is None:
            return float(found is not None)
        return float((found["answer"] or "").strip() == answer.strip())

    return score


def _reasoning_gym(allow_eval: bool = False) -> Score:
    """The task's own score in [0, 1], for datasets named `rg:…`; of what stands in <answer> tags, where there are."""
    import json

    from reasoning_gym import get_score_answer_fn
    from reasoning_gym.utils import extract_answer

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
                "writes may run as code; choose another task, or write the reward reasoning_gym?allow_eval=true where "
                "that is safe."
            )
        answer = extract_answer(completion) or completion.strip()
        return get_score_answer_fn(task)(answer, entry)

    return score


def _overlong(limit: int, buffer: int | None = None) -> Score:
    """DAPO's soft penalty: 0 up to limit − buffer tokens, then linearly down to −1 at limit."""
    span = limit // 5 if buffer is None else buffer
    if not 0 < span <= limit:
        raise InvalidParameterError(
            f"overlong has buffer {span}, but it must lie between 1 and the completion limit of {limit} tokens."
        )
    return lambda completion, *, row, length: max(-1.0, min(0.0, (limit - span - length) / span))


BUILT_IN: dict[str, Callable[..., Score]] = {
    "math": _math,
    "last_number": _last_number,
    "exact": _exact,
    "regex": _regex,
    "reasoning_gym": _reasoning_gym,
    "overlong": _overlong,
}

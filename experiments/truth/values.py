"""V at every prefix of sampled responses: the probability of a right answer from there, by sampling from the policy.

Where the policy is nearly certain, nothing is sampled: V(y<t) = π(y_t) V(y≤t) + (1 − π(y_t)) V', with V' in [0, 1], so
the two differ by at most 1 − π(y_t). Prefixes within SHARED of a measured one, summed along the response, take its
value. And a sample that goes on as the response does is one of the response's later prefixes too.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from experiments.model import sample
from experiments.task import END, decode, encode, reward
from fipo.errors import DataError

SHARED = 0.01  # at most so far from the value that it takes
ROUND = 32  # samples of a prefix at first; a few more rounds come where its value is not known yet
ROWS = 2048  # sampled together

Place = tuple[int, int]  # a response, and the token before which V is asked
Prefix = tuple[Any, tuple[int, ...]]  # of responses: their problem, and the first ids


class NotMeasurableError(DataError):
    """Nothing can be measured of these responses."""


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    problem: Any  # whatever the sampler takes: a Problem, or a prompt
    ids: list[int]  # without padding
    logps: Tensor  # (T,) under the policy that is asked
    reward: float

    @property
    def prompt(self) -> str:
        return self.problem if isinstance(self.problem, str) else self.problem.prompt


class Continuation(NamedTuple):
    """One sampled response that starts with a prefix of a measured one."""

    ids: tuple[int, ...]  # with the prefix
    right: bool


class Sampled(NamedTuple):
    """What is known of a prefix."""

    right: int
    counted: int  # continuations of it
    drawn: int  # of them, for this response: what is drawn for several is the first one's


@dataclass(frozen=True)
class Values:
    """Of one response of T tokens, before each token and after the last: all (T + 1,)."""

    value: Tensor  # float64, rounded to 6 decimals
    error: Tensor  # standard error of `value`
    samples: Tensor  # that the value rests on; 0 where it is that of a later prefix, or the reward
    drawn: Tensor  # of them, for this response

    @property
    def advantage(self) -> Tensor:
        """(T,) what each token changed: V(y≤t) − V(y<t)."""
        return self.value.diff()


def measure(
    model: LlamaForCausalLM, responses: list[Response], error: float, max_tokens: int, generator: torch.Generator
) -> list[Values]:
    """The values of every response's prefixes, under `model` at temperature 1 and a limit of `max_tokens`.

    A prefix is sampled until the standard error of its value is at most `error`.

    Raises:
        NotMeasurableError: A response, or its prompt with as many tokens as are sampled, is longer than the limits.
    """
    _require_room(model, responses, max_tokens)
    return measure_with(lambda places: _continued(model, responses, places, max_tokens, generator), responses, error)


def measure_with(
    continued: Callable[[list[Place]], list[list[Continuation]]], responses: list[Response], error: float
) -> list[Values]:
    """The values of every response's prefixes, each with a standard error of at most `error`.

    `continued` samples ROUND continuations of each of some prefixes, all before the same token. One that goes on as the
    response does is a sample of the response's later prefixes too, so prefixes are taken from the first to the last.
    """
    anchors = [anchors_of(response.logps) for response in responses]
    pools: dict[Any, list[Continuation]] = defaultdict(list)  # by problem
    found: dict[Place, Sampled] = {}
    for t in sorted({t for places in anchors for t in places}):
        alike: dict[Prefix, list[int]] = defaultdict(list)
        for row, response in enumerate(responses):
            if t in anchors[row]:
                alike[response.problem, tuple(response.ids[:t])].append(row)
        sampled = _sample({prefix: (rows[0], t) for prefix, rows in alike.items()}, continued, pools, error)
        for prefix, (first, *others) in alike.items():
            found[first, t] = sampled[prefix]
            found |= {(row, t): sampled[prefix]._replace(drawn=0) for row in others}
    return [_values(response, row, anchors[row], found) for row, response in enumerate(responses)]


def _sample(
    places: dict[Prefix, Place],
    continued: Callable[[list[Place]], list[list[Continuation]]],
    pools: dict[Any, list[Continuation]],
    error: float,
) -> dict[Prefix, Sampled]:
    """What is known of prefixes of one length, from the pools and from what is sampled here and put into them."""
    known = {(problem, ids): [one for one in pools[problem] if one.ids[: len(ids)] == ids] for problem, ids in places}
    drawn = dict.fromkeys(places, 0)
    while waiting := [prefix for prefix in places for _ in range(rounds_left(*_counted(known[prefix]), error))]:
        for at in range(0, len(waiting), ROWS // ROUND):
            batch = waiting[at : at + ROWS // ROUND]
            for prefix, new in zip(batch, continued([places[prefix] for prefix in batch]), strict=True):
                known[prefix] += new
                pools[prefix[0]] += new
                drawn[prefix] += len(new)
    return {prefix: Sampled(*_counted(known[prefix]), drawn[prefix]) for prefix in places}


def _counted(pool: list[Continuation]) -> tuple[int, int]:
    return sum(one.right for one in pool), len(pool)


def _require_room(model: LlamaForCausalLM, responses: list[Response], max_tokens: int) -> None:
    context = model.config.max_position_embeddings
    for response in responses:
        prompt = response.prompt
        if len(response.ids) > max_tokens or len(encode(prompt)) + max_tokens > context:
            raise NotMeasurableError(
                f"The response to {prompt!r} has {len(response.ids)} tokens, but at most {max_tokens} are sampled, and "
                f"{context} fit the model with the prompt; leave it out."
            )


def anchors_of(logps: Tensor) -> list[int]:
    """The tokens before which V is to be sampled, from the last one back."""
    places, slack = [], 0.0
    for t in reversed(range(len(logps))):
        slack += 1 - float(logps[t].exp())
        if slack > SHARED:
            places.append(t)
            slack = 0.0
    return places


def standard_error(right: int, counted: int) -> float:
    """Of a share, by Laplace's estimate of it, so that 0 of 32 is not certain."""
    return (_variance(right, counted) / counted) ** 0.5


def rounds_left(right: int, counted: int, error: float) -> int:
    """How many more rounds should bring a share's standard error to `error`: one, or at most as many as there were."""
    if counted and standard_error(right, counted) <= error:
        return 0
    wanted = math.ceil((_variance(right, counted) / error**2 - counted) / ROUND)
    return max(1, min(wanted, counted // ROUND))


def _variance(right: int, counted: int) -> float:
    share = (right + 1) / (counted + 2)
    return share * (1 - share)


def _continued(
    model: LlamaForCausalLM,
    responses: list[Response],
    places: list[Place],
    max_tokens: int,
    generator: torch.Generator,
) -> list[list[Continuation]]:
    """ROUND continuations of each prefix."""
    prefixes = [[*encode(responses[row].problem.prompt), *responses[row].ids[:t]] for row, t in places]
    samples = sample(model, torch.tensor(prefixes), max_tokens - places[0][1], generator, torch.float32, ROUND)
    found = []
    for (row, t), rests in zip(places, samples.ids.view(len(places), ROUND, -1).tolist(), strict=True):
        problem, start = responses[row].problem, responses[row].ids[:t]
        scores = [reward(problem, decode(start + rest), ended=END in rest) for rest in rests]
        found.append([Continuation((*start, *rest), bool(score)) for rest, score in zip(rests, scores, strict=True)])
    return found


def _values(response: Response, row: int, anchors: list[int], found: dict[Place, Sampled]) -> Values:
    length = len(response.ids)
    value, error = torch.zeros(length + 1).double(), torch.zeros(length + 1)
    samples, drawn = (torch.zeros(length + 1, dtype=torch.int) for _ in range(2))
    value[length] = response.reward
    measured = set(anchors)
    for t in reversed(range(length)):
        if t in measured:
            one = found[row, t]
            value[t], samples[t], drawn[t] = one.right / one.counted, one.counted, one.drawn
            error[t] = standard_error(one.right, one.counted)
        else:
            value[t], error[t] = value[t + 1], error[t + 1]
    return Values(value.round(decimals=6), error, samples, drawn)

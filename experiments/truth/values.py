"""V at every prefix of sampled responses: the probability of a right answer from there, by sampling from the policy.

Where the policy is nearly certain, nothing is sampled: V(y<t) = π(y_t) V(y≤t) + (1 − π(y_t)) V', with V' in [0, 1], so
the two differ by at most 1 − π(y_t). Prefixes within SHARED of a measured one, summed along the response, take its
value. And a sample that goes on as the response does is one of the response's later prefixes too.
"""

import math
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
STANDARD_ERROR = 0.03  # a prefix is sampled until its value is known to this
ROWS = 2048  # sampled together

Place = tuple[int, int]  # a response, and the token before which V is asked


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    problem: Any  # whatever the sampler takes: a Problem, or a prompt
    ids: list[int]  # without padding
    logps: Tensor  # (T,) under the policy that is asked
    reward: float


class Continuation(NamedTuple):
    """One sampled response that starts with a prefix of a measured one."""

    ids: list[int]  # with the prefix
    right: bool


class Sampled(NamedTuple):
    """What is known of a prefix."""

    right: int
    counted: int  # continuations of it
    drawn: int  # that start there


@dataclass(frozen=True)
class Values:
    """Of one response of T tokens, before each token and after the last: all (T + 1,)."""

    value: Tensor
    error: Tensor  # standard error of `value`
    samples: Tensor  # that the value rests on; 0 where it is that of a later prefix, or the reward
    drawn: Tensor  # those of them that start here

    @property
    def advantage(self) -> Tensor:
        """(T,) what each token changed: V(y≤t) − V(y<t)."""
        return self.value.diff()


def measure(
    model: LlamaForCausalLM, responses: list[Response], max_tokens: int, generator: torch.Generator
) -> list[Values]:
    """The values of every response's prefixes, under `model` at temperature 1 and a limit of `max_tokens`.

    Raises:
        DataError: A response, or its prompt with as many tokens as are sampled, is longer than the limits.
    """
    _require_room(model, responses, max_tokens)
    return measure_with(lambda places: _continued(model, responses, places, max_tokens, generator), responses)


def measure_with(
    continued: Callable[[list[Place]], list[list[Continuation]]], responses: list[Response]
) -> list[Values]:
    """The values of every response's prefixes.

    `continued` samples ROUND continuations of each of some prefixes, all before the same token. One that goes on as the
    response does is a sample of the response's later prefixes too, so prefixes are taken from the first to the last.
    """
    anchors = [anchors_of(response.logps) for response in responses]
    pools: list[list[Continuation]] = [[] for _ in responses]
    found: dict[Place, Sampled] = {}
    for t in sorted({t for places in anchors for t in places}):
        here = [row for row, places in enumerate(anchors) if t in places]
        same = {row: _with_the_same_prefix(responses, row, t) for row in here}
        for row in here:
            pools[row] = [one for one in pools[row] if one.ids[:t] == responses[row].ids[:t]]
        drawn = dict.fromkeys(here, 0)
        first = [row for row in here if not any(other in here for other in same[row] if other < row)]
        while waiting := [(row, t) for row in first for _ in range(rounds_left(*_counted(pools[row])))]:
            for at in range(0, len(waiting), ROWS // ROUND):
                batch = waiting[at : at + ROWS // ROUND]
                for (row, _), new in zip(batch, continued(batch), strict=True):
                    drawn[row] += len(new)
                    for other in same[row]:
                        pools[other] += new
        found |= {(row, t): Sampled(*_counted(pools[row]), drawn[row]) for row in here}
    return [_values(response, row, anchors[row], found) for row, response in enumerate(responses)]


def _counted(pool: list[Continuation]) -> tuple[int, int]:
    return sum(one.right for one in pool), len(pool)


def _with_the_same_prefix(responses: list[Response], row: int, t: int) -> list[int]:
    """Rows whose first t tokens, after the same prompt, are those of `row`: what continues one continues all."""
    problem, prefix = responses[row].problem, responses[row].ids[:t]
    return [n for n, one in enumerate(responses) if one.problem == problem and one.ids[:t] == prefix]


def _require_room(model: LlamaForCausalLM, responses: list[Response], max_tokens: int) -> None:
    context = model.config.max_position_embeddings
    for response in responses:
        prompt = response.problem.prompt
        if len(response.ids) > max_tokens or len(encode(prompt)) + max_tokens > context:
            raise DataError(
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


def standard_error(right: int, drawn: int) -> float:
    """Of a share, by Laplace's estimate of it, so that 0 of 32 is not certain."""
    share = (right + 1) / (drawn + 2)
    return float((share * (1 - share) / drawn) ** 0.5)


def rounds_left(right: int, counted: int) -> int:
    """How many more rounds should bring a share's standard error to STANDARD_ERROR."""
    if counted and standard_error(right, counted) <= STANDARD_ERROR:
        return 0
    share = (right + 1) / (counted + 2) if counted >= ROUND else 0  # of too few, one round tells more
    return max(1, math.ceil((share * (1 - share) / STANDARD_ERROR**2 - counted) / ROUND))


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
        whole = [(start + rest, END in rest) for rest in rests]
        found.append([Continuation(ids, bool(reward(problem, decode(ids), ended=ended))) for ids, ended in whole])
    return found


def _values(response: Response, row: int, anchors: list[int], found: dict[Place, Sampled]) -> Values:
    length = len(response.ids)
    value, error = torch.zeros(length + 1), torch.zeros(length + 1)
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
    return Values(value, error, samples, drawn)

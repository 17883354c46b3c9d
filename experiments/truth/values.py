"""V at every prefix of sampled responses: the probability of a right answer from there, by sampling from the policy.

Where the policy is nearly certain, nothing is sampled: V(y<t) = π(y_t) V(y≤t) + (1 − π(y_t)) V', with V' in [0, 1], so
the two differ by at most 1 − π(y_t). Prefixes within SHARED of a measured one, summed along the response, take its
value.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Values:
    """Of one response of T tokens, before each token and after the last: all (T + 1,)."""

    value: Tensor
    error: Tensor  # standard error of `value`
    samples: Tensor  # drawn here; 0 where the value is that of a later prefix, or the reward

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
    return measure_with(lambda places: _try_from(model, responses, places, max_tokens, generator), responses)


def measure_with(right_from: Callable[[list[Place]], list[int]], responses: list[Response]) -> list[Values]:
    """The values of every response's prefixes.

    `right_from` samples ROUND continuations of each of some prefixes, all before the same token, and says how many end
    in a right answer.
    """
    anchors = [anchors_of(response.logps) for response in responses]
    right: dict[Place, int] = defaultdict(int)
    drawn: dict[Place, int] = defaultdict(int)
    waiting = [(row, t) for row, places in enumerate(anchors) for t in places]
    while waiting:
        for batch in _of_equal_length(waiting):
            for place, found in zip(batch, right_from(batch), strict=True):
                right[place] += found
                drawn[place] += ROUND
        waiting = [place for place in drawn for _ in range(rounds_left(right[place], drawn[place]))]
    return [_values(response, row, anchors[row], right, drawn) for row, response in enumerate(responses)]


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


def rounds_left(right: int, drawn: int) -> int:
    """How many more rounds should bring a share's standard error below STANDARD_ERROR."""
    if standard_error(right, drawn) <= STANDARD_ERROR:
        return 0
    share = (right + 1) / (drawn + 2)
    return max(1, math.ceil((share * (1 - share) / STANDARD_ERROR**2 - drawn) / ROUND))


def _of_equal_length(places: list[Place]) -> list[list[Place]]:
    """Batches of prefixes of one length, which need no padding; a place may be there several times."""
    by_length = defaultdict(list)
    for row, t in places:
        by_length[t].append((row, t))
    most = ROWS // ROUND
    return [same[at : at + most] for _, same in sorted(by_length.items()) for at in range(0, len(same), most)]


def _try_from(
    model: LlamaForCausalLM,
    responses: list[Response],
    places: list[Place],
    max_tokens: int,
    generator: torch.Generator,
) -> list[int]:
    """How many of ROUND continuations of each prefix end in a right answer."""
    prefixes = [[*encode(responses[row].problem.prompt), *responses[row].ids[:t]] for row, t in places]
    samples = sample(
        model,
        torch.tensor(prefixes).repeat_interleave(ROUND, 0),
        max_tokens - places[0][1],
        generator,
        torch.float32,
    )
    found = []
    for (row, t), ids in zip(places, samples.ids.view(len(places), ROUND, -1).tolist(), strict=True):
        problem, start = responses[row].problem, responses[row].ids[:t]
        found.append(sum(int(reward(problem, decode([*start, *rest]), ended=END in rest)) for rest in ids))
    return found


def _values(
    response: Response,
    row: int,
    anchors: list[int],
    right: dict[Place, int],
    drawn: dict[Place, int],
) -> Values:
    length = len(response.ids)
    value, error, samples = torch.zeros(length + 1), torch.zeros(length + 1), torch.zeros(length + 1, dtype=torch.int)
    value[length] = response.reward
    measured = set(anchors)
    for t in reversed(range(length)):
        place = (row, t)
        if t in measured:
            value[t], samples[t] = right[place] / drawn[place], drawn[place]
            error[t] = standard_error(right[place], drawn[place])
        else:
            value[t], error[t] = value[t + 1], error[t + 1]
    return Values(value, error, samples)

"""Other weights in FIPO's place: a rule of one's own, and controls for experiments. docs/rules.md shows rules.

A rule is any function of what is known of the tokens, `python:module:function`. It is called with whole responses,
packed one after the other: per token (N,) without gradient

    logps, old_logps, advantages, loss_mask (bool), entropy (nats; None where the engine does not compute it)

and `cu_seqlens` (S + 1,), and returns a weight a token, finite and at least 0 where `loss_mask` is true. A response
ends with its last trained token. Dropped sequences keep the factor 0, whoever made the weights.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import pad

from fipo.core.credit import TokenCredit
from fipo.errors import InvalidParameterError
from fipo.functions import function_of
from fipo.messages import one_line

CONTROLS = {
    "none": "all weights are 1, which is GRPO with the same drop",
    "uniform": "each response's mean weight at all its tokens",
    "shuffle": "each response's weights in an order of their own, the same at each of its updates",
}
CONTROL_HELP = "For experiments, other weights: " + "; ".join(f"{name}: {what}" for name, what in CONTROLS.items())
RULE_HELP = "A credit rule of your own in place of FIPO's weights, python:module:function; see docs/rules.md."
TOKENS = ("logps", "old_logps", "advantages", "loss_mask", "entropy")  # what a rule is given of every token
OF_THE_BOUNDS = ("at_low", "at_high", "safety_capped")

Response = dict[str, Tensor]  # the columns of one whole response, (T,) each; entropy may be missing


@dataclass(frozen=True, slots=True)
class Weighting:
    """What takes the place of FIPO's weights: a rule, and a control of its weights or of FIPO's."""

    rule_name: str | None = None
    rule: Callable[..., Tensor] | None = None
    control: str | None = None

    @classmethod
    def of(cls, rule: str | None, control: str | None, settings: str = "fipo_{}") -> "Weighting | None":
        """From the names of both; None where neither is given. `settings` is what the engine calls its settings. Raises
        an InvalidParameterError where there is no such control, or the rule cannot be imported or called."""
        if control not in (None, *CONTROLS):
            raise InvalidParameterError(
                f"{settings.format('control')} is {control!r}, but must be one of {', '.join(CONTROLS)}, or not given."
            )
        if rule is None and control is None:
            return None
        return cls(rule, None if rule is None else function_of(rule, settings.format("rule")), control)

    @property
    def name(self) -> str:
        """What made the weights, as traces and reports say it."""
        return ", ".join(name for name in (self.rule_name, self.control) if name is not None)

    def of_rows(self, credit: TokenCredit, columns: Mapping[str, Tensor | None], data: Iterable[Tensor]) -> TokenCredit:
        """`credit` (B, T) with this weighting's weights: of the `columns` TOKENS, and of `response_orders`' data."""
        given = {name: column for name, column in columns.items() if column is not None}
        responses = [{name: column[row] for name, column in given.items()} for row in range(len(credit.weight))]
        weights = self.of_responses(list(credit.weight), responses, data)
        return self.put(credit, torch.stack(weights) if weights else credit.weight)

    @torch.no_grad()
    def of_responses(self, own: list[Tensor], responses: list[Response], data: Iterable[Tensor]) -> list[Tensor]:
        """The weights (T,) of whole responses, whose `own` FIPO gave; 1 at tokens that are not trained. Raises an
        InvalidParameterError where the rule raises, or returns something else than weights."""
        masks = [response["loss_mask"].bool() for response in responses]
        weights = own if self.rule is None else self._by_rule(responses)
        weights = [torch.where(mask, weight, 1).to(of) for weight, mask, of in zip(weights, masks, own, strict=True)]
        if self.control is None:
            return weights
        rows = zip(weights, masks, response_orders(data), strict=True)
        return [controlled(weight, mask, self.control, order) for weight, mask, order in rows]

    def put(self, credit: TokenCredit, weight: Tensor) -> TokenCredit:
        """`credit` with these weights, and the factor that they make; no bound of FIPO's holds a rule's weights."""
        bounded = dict.fromkeys(() if self.rule is None else OF_THE_BOUNDS, torch.zeros_like(credit.kept))
        return replace(credit, weight=weight, factor=torch.where(credit.kept, weight, 0), **bounded)

    def _by_rule(self, responses: list[Response]) -> list[Tensor]:
        if not responses:
            return []
        trained = [response["loss_mask"].nonzero()[:, 0].tolist() for response in responses]
        lengths = [places[-1] + 1 if places else 0 for places in trained]  # to the last trained token
        rows = list(zip(responses, lengths, strict=True))
        names = [name for name in TOKENS if name in responses[0]]
        known: dict[str, Any] = {n: torch.cat([row[n][:length] for row, length in rows]).detach() for n in names}
        mask = known["loss_mask"] = known["loss_mask"].bool()
        finite = known["old_logps"].isfinite()  # such a token is left out, whatever its weight
        known["old_logps"] = torch.where(finite, known["old_logps"], known["logps"])
        boundaries = torch.tensor([0, *lengths], device=mask.device).cumsum(0)
        try:
            found = self.rule(**{"entropy": None} | known, cu_seqlens=boundaries)  # type: ignore[misc]
        except Exception as error:
            problem = f"raised {type(error).__name__}: {one_line(error)}; repair it."
            raise InvalidParameterError(f"The rule {self.rule_name} {problem}") from error
        if (wrong := _problem_of(found, mask)) is not None:
            raise InvalidParameterError(
                f"The rule {self.rule_name} returned {wrong}, but must return a tensor with one finite weight of at "
                "least 0 a token, shaped like logps; repair it."
            )
        parts = zip(found.to(mask.device).split(lengths), responses, strict=True)
        return [pad(part, (0, len(response["logps"]) - len(part))) for part, response in parts]


def _problem_of(found: Any, trained: Tensor) -> str | None:
    if not isinstance(found, Tensor):
        return f"a {type(found).__name__}"
    if found.shape != trained.shape:
        return f"shape {tuple(found.shape)} for {len(trained)} tokens"
    wrong = found[trained.to(found.device) & ~(found.isfinite() & (found >= 0))]
    return f"the weight {wrong[0].item()}" if len(wrong) else None


def controlled(weight: Tensor, trained: Tensor, control: str, order: torch.Generator) -> Tensor:
    """One response's weights (T,) under a control, at its trained tokens (T,)."""
    if control == "none":
        return torch.ones_like(weight)
    found = weight.clone()
    if control == "uniform":
        found[trained] = weight[trained].mean()
    else:
        places = torch.randperm(int(trained.sum()), generator=order).to(weight.device)
        found[trained] = weight[trained][places]
    return found


def response_orders(responses: Iterable[Tensor]) -> Iterator[torch.Generator]:
    """A generator for each response, seeded by what is fixed about it when the rollout ends (its token ids, or its old
    log-probs): the same at every update and however a batch is split."""
    for response in responses:
        data = response.detach().cpu().contiguous().view(torch.uint8)
        yield torch.Generator().manual_seed(crc32(data.numpy().tobytes()))

"""The walk from the last token to the first behind `streaming_loss`."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fipo.core.chunks import Chunk, Chunks
from fipo.core.layout import count_per_sequence, spread
from fipo.core.lm_head import ChunkedHead
from fipo.core.loss import FIPOOutput
from fipo.core.objective import Objective, TokenBatch


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What a walk over N positions found; nothing of it carries a gradient."""

    loss: Tensor  # scalar
    gradients: list[Tensor | None]  # of hidden states, weight and bias, as far as wanted, in the head's dtype
    out: FIPOOutput  # of (N,) tensors, like the two that follow
    logps: Tensor
    entropy: Tensor


class ReversePass:
    """The objective of one batch, seen as a row of N positions with sequence boundaries, and its gradients.

    Args:
        head: Scores the chunks.
        hidden, targets, batch: (B, T, H) and (B, T), or (N, H) and (N,); they keep their shapes, so that nothing is
            copied.
        objective: What is minimised.
        chunks: How the row is cut.
    """

    @torch.no_grad()
    def __init__(
        self,
        head: ChunkedHead,
        hidden: Tensor,
        targets: Tensor,
        batch: TokenBatch,
        objective: Objective,
        chunks: Chunks,
    ) -> None:
        self.head, self.hidden, self.targets, self.objective, self.chunks = head, hidden, targets, objective, chunks
        self.batch = batch.map(lambda values: values.reshape(-1))
        self.dual_clipped = torch.zeros(len(chunks.boundaries) - 1, dtype=torch.long, device=hidden.device)
        self.logps, self.entropy, self.grad_policy = torch.zeros(
            3, targets.numel(), dtype=head.dtype, device=hidden.device
        )

    @torch.no_grad()
    def run(self, wanted: list[bool]) -> Walk:
        """May be called once; `wanted` says whether the gradients of hidden states, weight and bias are."""
        inputs = (self.hidden, self.head.weight, self.head.bias)
        self.gradients = [
            torch.zeros_like(x, dtype=self.head.dtype) if x is not None and wants else None
            for x, wants in zip(inputs, wanted, strict=True)
        ]
        carry, seen, policies = None, [], []
        self.regularizer = torch.zeros((), dtype=self.head.dtype, device=self.hidden.device)
        for chunk in self.chunks.right_to_left:
            out, policy, carry = self._visit(chunk, carry)
            seen.append(out)
            policies.append(policy)
        out = self._join(seen)
        self._take_back(out.kept)
        loss = torch.where(out.kept, torch.cat(policies[::-1]), 0).sum() + self.regularizer
        if self.batch.denominator is None:
            kept = out.kept.sum().clamp(min=1)
            loss, self.gradients = loss / kept, [None if x is None else x.div_(kept) for x in self.gradients]
        return Walk(loss, self.gradients, out, self.logps, self.entropy)

    def _visit(self, chunk: Chunk, carry: Tensor | None) -> tuple[FIPOOutput, Tensor, Tensor]:
        """One chunk: its FIPOOutput, the policy term per position, and future_kl at its first position."""
        positions, trained = chunk.positions, chunk.trained
        here = self.chunks.trained[trained]
        self.logps[here], self.entropy[here] = self._score(trained)
        logps = self.logps[positions].clone().requires_grad_()
        entropy = self.entropy[positions].clone().requires_grad_()
        batch = self.batch.map(lambda values: values[positions])
        sequences, cu_seqlens, carry = self._layout(positions, carry)
        with torch.enable_grad():
            outside = self.dual_clipped[sequences]
            out = self.objective.credit(
                logps, batch, cu_seqlens=cu_seqlens, carry=carry, dual_clipped_outside=outside, checked=True
            )
            policy = self.objective.policy_term(out, batch)
            regularizer = self.objective.regularizer(logps, entropy, batch)
            if (chunk.learns or regularizer is not None) and any(gradient is not None for gradient in self.gradients):
                (self.grad_policy[positions],) = torch.autograd.grad(policy.sum(), logps)
                self._differentiate(trained, *self._slopes(here, positions, regularizer, logps, entropy))
        self.dual_clipped[sequences] += count_per_sequence(out.dual_clipped, cu_seqlens)
        if regularizer is not None:
            self.regularizer += regularizer.detach().sum()
        return replace(out, loss=out.loss.detach()), policy.detach(), out.future_kl[:1]

    def _slopes(
        self, here: Tensor, positions: slice, regularizer: Tensor | None, logps: Tensor, entropy: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The objective's gradients by the log-probs at `here`, and by the entropies where it has a bonus."""
        policy, inside = self.grad_policy[here], here - positions.start
        if regularizer is None:
            return policy, None
        grad_logps, grad_entropy = torch.autograd.grad(regularizer.sum(), (logps, entropy), materialize_grads=True)
        return policy + grad_logps[inside], None if self.batch.entropy_coef is None else grad_entropy[inside]

    def _layout(self, positions: slice, carry: Tensor | None) -> tuple[slice, Tensor, Tensor | None]:
        """Which sequences a chunk touches, their boundaries in it, and the carry for the one that it cuts."""
        bounds, left, right = self.chunks.boundaries, positions.start, positions.stop
        first, last = bisect_right(bounds, left) - 1, bisect_left(bounds, right)
        if left == right:  # no positions at all
            first, last = 0, len(bounds) - 1
        if carry is not None:
            carry = carry if bounds[last] > right else torch.zeros_like(carry)
            carry = torch.nn.functional.pad(carry, (last - first - 1, 0))
        return slice(first, last), self.chunks.cu_seqlens[first : last + 1].clamp(left, right) - left, carry

    def _score(self, trained: slice | Tensor) -> tuple[Tensor, Tensor]:
        where = tuple(index[trained] for index in self.chunks.where)
        return self.head.score(self.hidden[where], self.targets[where])

    def _differentiate(self, trained: slice | Tensor, grad_logps: Tensor, grad_entropy: Tensor | None) -> None:
        """Adds the gradients of the tokens that were scored last.

        Those of a dropped sequence have none, which only a CPU can look at without waiting.
        """
        if grad_logps.device.type == "cpu" and grad_entropy is None and not grad_logps.any():
            return
        hidden, weight, bias = self.gradients
        grad_hidden = self.head.backward(grad_logps, grad_entropy, hidden=hidden is not None, weight=weight, bias=bias)
        if hidden is not None and grad_hidden is not None:
            hidden[tuple(index[trained] for index in self.chunks.where)] += grad_hidden

    def _join(self, seen: list[FIPOOutput]) -> FIPOOutput:
        """The chunks' outputs as one, with the drop as it stands at the end."""
        joined = {f.name: torch.cat([getattr(out, f.name) for out in seen[::-1]]) for f in fields(FIPOOutput)}
        dropped = self.dual_clipped > self.objective.params.max_dual_clipped
        kept = self.batch.loss_mask & ~spread(dropped, self.logps, self.chunks.cu_seqlens)
        return FIPOOutput(**{**joined, "kept": kept, "dropped": dropped})

    def _take_back(self, kept: Tensor) -> None:
        """Removes the policy's part of tokens whose sequence was found dropped after they had been differentiated."""
        stale = ((self.grad_policy != 0) & ~kept)[self.chunks.trained].nonzero()[:, 0]
        for chunk in stale.split(self.chunks.size) if len(stale) else ():  # nothing splits into one empty chunk
            self._score(chunk)
            self._differentiate(chunk, -self.grad_policy[self.chunks.trained[chunk]], None)

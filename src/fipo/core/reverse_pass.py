"""The walk from the last token to the first behind `streaming_fipo_loss`."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from fipo.core.lm_head import Head
from fipo.core.loss import FIPOOutput, count_per_sequence, fipo_loss
from fipo.core.objective import TokenBatch, token_objective


class ReversePass:
    """One batch, seen as a row of N positions with sequence boundaries, and walked over from its end.

    `run` may be called once. Afterwards `out`, `logps` and `entropy` hold what the walk saw, all of them (N,).
    """

    def __init__(
        self,
        head: Head,
        hidden: Tensor,
        targets: Tensor,
        batch: TokenBatch,
        boundaries: list[int],
        chunk_tokens: int,
        loss_options: dict[str, Any],
        kl_options: dict[str, Any],
    ) -> None:
        """`hidden`, `targets` and `batch` keep their shapes, (B, T) or (N,), so that nothing is copied."""
        self.head, self.hidden, self.targets = head, hidden, targets
        self.where = batch.loss_mask.nonzero(as_tuple=True)
        self.batch = batch.map(lambda values: values.reshape(-1))
        self.trained = self.batch.loss_mask.nonzero()[:, 0]
        self.boundaries, self.chunk_tokens = boundaries, chunk_tokens
        self.loss_options, self.kl_options = loss_options, kl_options
        self.dual_clipped = torch.zeros(len(boundaries) - 1, dtype=torch.long, device=hidden.device)
        self.logps, self.entropy, self.grad_logps, self.grad_entropy = torch.zeros(
            4, targets.numel(), dtype=head.dtype, device=hidden.device
        )

    def run(self, wanted: list[bool]) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, and the gradients of hidden states, weight and bias as far as wanted, in the head's dtype."""
        inputs = (self.hidden, self.head.weight, self.head.bias)
        self.gradients = [
            torch.zeros_like(x, dtype=self.head.dtype) if x is not None and wants else None
            for x, wants in zip(inputs, wanted, strict=True)
        ]
        carry, seen, losses = None, [], []
        for positions, trained in self._chunks():
            out, loss, carry = self._visit(positions, trained, carry)
            seen.append(out)
            losses.append(loss)
        self.out = self._join(seen)
        self._take_back()
        total = torch.where(self.out.kept, torch.cat(losses[::-1]), 0).sum()
        if self.batch.denominator is not None:
            return total, self.gradients
        kept = self.out.kept.sum().clamp(min=1)
        return total / kept, [None if x is None else x.div_(kept) for x in self.gradients]

    def _chunks(self) -> Iterator[tuple[slice, slice]]:
        """From right to left: slices of positions that cover the row, and of the trained tokens within each."""
        total = len(self.trained)
        ends = list(range(total, 0, -self.chunk_tokens))
        starts = [*ends[1:], 0]
        first_positions = [0] if not ends else [*self.trained[starts[:-1]].tolist(), 0]
        right = len(self.logps)
        for start, end, left in zip(starts, ends or [0], first_positions, strict=True):
            yield slice(left, right), slice(start, end)
            right = left

    def _visit(self, positions: slice, trained: slice, carry: Tensor | None) -> tuple[FIPOOutput, Tensor, Tensor]:
        """One chunk: its FIPOOutput, the objective per position, and future_kl at its first position."""
        here = self.trained[trained]
        self.logps[here], self.entropy[here] = self._score(trained)
        logps = self.logps[positions].clone().requires_grad_()
        entropy = self.entropy[positions].clone().requires_grad_()
        batch = self.batch.map(lambda values: values[positions])
        sequences, cu_seqlens, carry = self._layout(positions, carry)
        with torch.enable_grad():
            out = fipo_loss(
                logps,
                batch.old_logps,
                batch.advantages,
                batch.loss_mask,
                **self.loss_options,
                cu_seqlens=cu_seqlens,
                carry=carry,
                dual_clipped_outside=self.dual_clipped[sequences],
            )
            loss = token_objective(out, logps, entropy, batch, **self.kl_options)
            total = loss.sum()
        self.dual_clipped[sequences] += count_per_sequence(out.dual_clipped, cu_seqlens)
        if any(gradient is not None for gradient in self.gradients):
            grads = torch.autograd.grad(total, (logps, entropy), materialize_grads=True)
            self.grad_logps[positions], self.grad_entropy[positions] = grads
            self._differentiate(trained)
        return replace(out, loss=out.loss.detach()), loss.detach(), out.future_kl[:1]

    def _layout(self, positions: slice, carry: Tensor | None) -> tuple[slice, Tensor, Tensor | None]:
        """Which sequences a chunk touches, their boundaries in it, and the carry for the one that it cuts."""
        bounds, left, right = self.boundaries, positions.start, positions.stop
        first, last = bisect_right(bounds, left) - 1, bisect_left(bounds, right)
        if left == right:  # no positions at all
            first, last = 0, len(bounds) - 1
        cuts = [min(max(bound, left), right) - left for bound in bounds[first : last + 1]]
        if carry is not None:
            carry = carry if bounds[last] > right else torch.zeros_like(carry)
            carry = torch.nn.functional.pad(carry, (last - first - 1, 0))
        return slice(first, last), torch.tensor(cuts, device=self.hidden.device), carry

    def _score(self, trained: slice | Tensor) -> tuple[Tensor, Tensor]:
        where = tuple(index[trained] for index in self.where)
        return self.head.score(self.hidden[where], self.targets[where])

    def _differentiate(self, trained: slice | Tensor, sign: int = 1) -> None:
        """Adds the gradients of the tokens that were scored last; with sign −1 takes them back."""
        grad_logps = sign * self.grad_logps[self.trained[trained]]
        grad_entropy = None
        if self.batch.entropy_coef is not None:
            grad_entropy = sign * self.grad_entropy[self.trained[trained]]
        elif not grad_logps.any():
            return  # a group of equal rewards needs no gradient
        hidden, weight, bias = self.gradients
        grad_hidden = self.head.backward(grad_logps, grad_entropy, hidden=hidden is not None, weight=weight, bias=bias)
        if hidden is not None and grad_hidden is not None:
            hidden[tuple(index[trained] for index in self.where)] += grad_hidden

    def _join(self, seen: list[FIPOOutput]) -> FIPOOutput:
        """The chunks' outputs as one, with the drop as it stands at the end."""
        joined = {f.name: torch.cat([getattr(out, f.name) for out in seen[::-1]]) for f in fields(FIPOOutput)}
        dropped = self.dual_clipped > self.loss_options["params"].max_dual_clipped
        lengths = torch.tensor(self.boundaries, device=dropped.device).diff()
        kept = self.batch.loss_mask & ~dropped.repeat_interleave(lengths)
        return FIPOOutput(**{**joined, "kept": kept, "dropped": dropped})

    def _take_back(self) -> None:
        """Removes what tokens gave whose sequence was found dropped only after they had been differentiated."""
        gave = (self.grad_logps != 0) | (self.grad_entropy != 0)
        stale = (gave & ~self.out.kept)[self.trained].nonzero()[:, 0]
        for chunk in stale.split(self.chunk_tokens) if len(stale) else ():  # nothing splits into one empty chunk
            self._score(chunk)
            self._differentiate(chunk, sign=-1)

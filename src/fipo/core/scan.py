"""Discounted suffix sums in linear time: the recurrence behind Future-KL.

    y_t = x_t + γ · y_{t+1},   γ = 2^(−1/half_life)

The scan works in blocks: one triangular matrix product inside every block, then the same recurrence, with γ^block,
over the blocks' heads. There is no loop over tokens and no γ^(−t), which would overflow. A block's result depends on
what lies to its right only through one number, the carry, so packed sequences, streams and split contexts are exact.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fipo.core.layout import read_for_free, sequence_of
from fipo.core.precision import exact_products, widest_float

BLOCK = 32  # tokens; the product costs as many multiplications a token: 128 took 1.6 times as long on two CPU cores


def discounted_suffix_sum(
    x: Tensor, half_life: float, *, carry: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """y_t = x_t + γ · y_{t+1} along the last dimension, with γ = 2^(−1/half_life).

    Args:
        x: (B, T) padded, or (N,) packed with `cu_seqlens`; float32 or float64. Differentiable.
        half_life: In tokens; `inf` gives plain suffix sums.
        carry: (B,), or (S,) for S packed sequences: y of the token right after each sequence; zero by default.
        cu_seqlens: (S + 1,) integer boundaries of the packed sequences, from 0 to N.

    Returns:
        Like `x`. `y[:, 0]` (packed: y at each sequence's start) is the carry for what lies to the left.
    """
    carry = None if carry is None else carry.to(x.dtype)
    with exact_products(x) as product_dtype:
        if cu_seqlens is None:
            return _scan_padded(x, half_life, carry, product_dtype)
        return _scan_packed(x, half_life, carry, cu_seqlens, x.numel(), product_dtype)


def suffix_sum_over(
    counted: Tensor, x: Tensor, half_life: float, *, carry: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """`discounted_suffix_sum` with distances counted in the `counted` entries alone, outside which `x` must be 0.

    The others are cut out; each gets the value of the next counted one, so that `[:, 0]` is the carry here too.
    """
    if x.numel() == 0:
        return x.clone()
    flat, inside, total, boundaries = x.reshape(-1), counted.reshape(-1), x.numel(), cu_seqlens
    if boundaries is None:  # the ends of the rows
        boundaries = torch.arange(len(x) + 1, device=x.device) * x.shape[1]
    counted_before = pad(inside.cumsum(0), (1, 0))
    next_counted, ends = counted_before[:-1], counted_before[boundaries]
    # Counted entries side by side; what is left over at the end is one sequence more, and one entry takes all others.
    packed = discounted_suffix_sum(
        flat.new_zeros(total + 1).index_put((torch.where(inside, next_counted, total),), flat)[:-1],
        half_life,
        carry=None if carry is None else pad(carry, (0, 1)),
        cu_seqlens=pad(ends, (0, 1), value=total),
    )
    sequence = sequence_of(boundaries, total)
    at_end = flat.new_zeros(len(ends) - 1) if carry is None else carry.to(x.dtype)
    found = packed[next_counted.clamp(max=total - 1)]
    return torch.where(next_counted < ends[1:][sequence], found, at_end[sequence]).view(x.shape)


def _scan_padded(x: Tensor, half_life: float, carry: Tensor | None, product_dtype: torch.dtype) -> Tensor:
    rows, length = x.shape
    if x.numel() == 0:
        return x.clone()
    if length <= BLOCK:
        return _scan_blocks(x, half_life, carry, product_dtype)
    gap = -length % BLOCK  # zeros on the left: the carry enters on the right and must meet the last token
    blocks = pad(x, (gap, 0)).view(-1, BLOCK)
    inside = _scan_blocks(blocks, half_life, None, product_dtype)
    heads = _scan_padded(inside[:, 0].view(rows, -1), half_life / BLOCK, carry, product_dtype)
    from_right = pad(heads[:, 1:], (0, 1))
    if carry is not None:
        from_right = torch.cat([heads[:, 1:], carry[:, None]], dim=1)
    y = inside.addcmul_(from_right.reshape(-1, 1), _powers_to_end(BLOCK, half_life, x.dtype, x.device))
    return y.view(rows, -1)[:, gap:]


def _scan_packed(
    x: Tensor, half_life: float, carry: Tensor | None, cu_seqlens: Tensor, longest: int, product_dtype: torch.dtype
) -> Tensor:
    """No size is read back from the device: there are as many blocks as there can be, and `longest` is a bound."""
    if x.numel() == 0:
        return x.clone()
    lengths, number_of_blocks = cu_seqlens.diff(), x.numel() // BLOCK + len(cu_seqlens) - 1
    cu_blocks = pad(((lengths + BLOCK - 1) // BLOCK).cumsum(0), (1, 0))
    cu_blocks[-1] = number_of_blocks
    last_block = torch.where(lengths > 0, cu_blocks[1:] - 1, number_of_blocks)  # beyond the last: there is none
    # Every sequence is right-aligned in blocks of its own, so the zeros lie left of it; the last one has all to spare.
    ends_apart = (cu_blocks[1:] * BLOCK - cu_seqlens[1:])[sequence_of(cu_seqlens, x.numel())]
    slots = torch.arange(x.numel(), device=x.device) + ends_apart
    blocks = x.new_zeros(number_of_blocks * BLOCK).index_put((slots,), x).view(-1, BLOCK)
    inside = _scan_blocks(blocks, half_life, None, product_dtype)

    from_right = x.new_zeros(number_of_blocks + 1)
    if longest > BLOCK:
        heads = _scan_packed(inside[:, 0], half_life / BLOCK, carry, cu_blocks, -(-longest // BLOCK), product_dtype)
        from_right = pad(heads[1:], (0, 2)).index_fill(0, last_block, 0)
    if carry is not None:
        from_right = from_right.index_put((last_block,), carry)
    y = inside.addcmul_(from_right[:-1, None], _powers_to_end(BLOCK, half_life, x.dtype, x.device))
    return y.view(-1)[slots]


def _scan_blocks(x: Tensor, half_life: float, carry: Tensor | None, product_dtype: torch.dtype) -> Tensor:
    """The recurrence in every row of `x` (R, C) by one product with a triangular (C, C) matrix of powers of γ.

    0 · NaN is NaN, so the product carries one to its right: NaNs are left out of it and put where they belong.
    """
    width, readable = x.shape[1], read_for_free(x)
    triangle = _triangle(width, half_life, product_dtype, x.device)
    y = (x.to(product_dtype) @ triangle).to(x.dtype) if readable else x
    if not readable or y[:, 0].isnan().any():
        nan = x.isnan()
        y = (x.masked_fill(nan, 0).to(product_dtype) @ triangle).to(x.dtype)
        y = y.masked_fill(nan.flip(-1).cumsum(-1).flip(-1) > 0, torch.nan)
    return y if carry is None else y.addcmul_(carry[:, None], _powers_to_end(width, half_life, x.dtype, x.device))


def _triangle(width: int, half_life: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """γ^(k − t) for k ≥ t, else 0: from column t (the result) to row k (the summand). Shape (width, width)."""
    position = torch.arange(width, device=device, dtype=widest_float(device))
    distance = position[:, None] - position[None, :]
    return torch.where(distance >= 0, torch.exp2(-distance / half_life), 0).to(dtype)


def _powers_to_end(width: int, half_life: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """γ^(width − t) for t < width: what the value right of a block is worth at each of its tokens. Shape (width,)."""
    distance = torch.arange(width, 0, -1, device=device, dtype=widest_float(device))
    return torch.exp2(-distance / half_life).to(dtype)

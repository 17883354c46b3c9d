"""A planted mistake: fipo's loss on context-parallel ranks that never hear of the credit to their right."""

import torch

from fipo.core import context_parallel
from fipo.engines.slime import fipo_loss_function

__all__ = ["fipo_loss_function"]

context_parallel._carries = lambda heads, extents, half_life: torch.zeros_like(heads)

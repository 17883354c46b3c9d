"""Functions of a user of slime, named by path."""

import torch
from on_slime import cp_utils


def here(masks, total_lengths, response_lengths):
    rows = zip(masks, total_lengths, response_lengths, strict=True)
    return torch.cat([cp_utils.slice_log_prob_with_cp(*row) for row in rows]).float()


def reject_every_third(args, *, pg_loss, loss_masks, total_lengths, response_lengths, **_):
    """A TIS function with rejection: other masks than it was given, and a metric of its own."""
    masks = [mask * (torch.arange(len(mask)) % 3 != 0) for mask in loss_masks]
    return pg_loss * 1.5, masks, {"rejected": 1 - here(masks, total_lengths, response_lengths)}


def constant_divisor(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    """A reducer of the policy loss alone: every token over 100."""
    return lambda x: (x * here(loss_masks, total_lengths, response_lengths)).sum() / 100

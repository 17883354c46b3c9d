"""slime's names as miles has them (radixark/miles, read at 31f1ca96): it descends from slime and calls the same hooks.

Imported in a process of miles alone. miles has neither top-p replay nor a capture of log-probs for the debug dump.
"""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from miles.backends.training_utils import cp_utils
from miles.backends.training_utils.cp_utils import all_gather_with_cp, slice_log_prob_with_cp
from miles.backends.training_utils.loss_hub import logit_processors
from miles.backends.training_utils.loss_hub.corrections import vanilla_tis_function
from miles.backends.training_utils.loss_hub.math_utils import compute_approx_kl, compute_opsm_mask
from miles.utils.misc import load_function
from torch import Tensor

__all__ = [
    "_maybe_capture_log_probs",
    "all_gather_with_cp",
    "compute_approx_kl",
    "compute_opsm_mask",
    "get_log_probs_and_entropy",
    "get_rollout_top_p_logprob_kwargs",
    "get_sum_of_sample_mean",
    "load_function",
    "slice_log_prob_with_cp",
    "vanilla_tis_function",
]


def get_log_probs_and_entropy(logits: Tensor, **options: Any) -> tuple[None, dict[str, list[Tensor]]]:
    return None, logit_processors.get_log_probs_and_entropy(logits, **options)


def get_sum_of_sample_mean(
    total_lengths: list[int],
    response_lengths: list[int],
    loss_masks: list[Tensor],
    rollout_mask_sums: list[Tensor],
    calculate_per_token_loss: bool = False,
) -> Callable[[Tensor], Tensor]:
    lengths = (total_lengths, response_lengths)
    return cp_utils.get_sum_of_sample_mean(
        *lengths, loss_masks, calculate_per_token_loss, denominators=rollout_mask_sums
    )


def get_rollout_top_p_logprob_kwargs(args: Namespace, batch: dict[str, Any]) -> dict[str, Any]:
    return {}


def _maybe_capture_log_probs(batch: dict[str, Any], log_probs: list[Tensor]) -> None:
    return None

"""Which update of a rollout it is, and the noise floor: at the first one log-ratios must be 0, so all else is noise.

slime's custom loss function does not see which update it computes, so a hook before every update notes it in the
namespace.
"""

import logging
from argparse import Namespace
from typing import Any

import torch

from fipo.core.extremes import SummedExtremes
from fipo.core.logged import FIRST_UPDATE_MEANS, NOISE_LIMIT, noise_warning
from fipo.core.loss import FIPOOutput
from fipo.engines.slime.contract import slime_function
from fipo.engines.slime.tracing import TRACES

logger = logging.getLogger(__name__)

HOOK_PATH = "fipo.engines.slime.before_train_step"
EXTREMES = SummedExtremes()  # of the update under way in this process


def before_train_step(args: Namespace, rollout_id: int, step_id: int, *others: Any) -> None:
    """For slime's --custom-megatron-before-train-step-hook-path: notes the update, then calls the user's own hook."""
    args.fipo_update_index = step_id
    EXTREMES.start()
    TRACES.start(rollout_id, step_id)
    own = getattr(args, "fipo_next_hook_path", None)
    if own is not None:
        slime_function("load_function")(own)(args, rollout_id, step_id, *others)


def install_hook(args: Namespace) -> None:
    """Makes slime call `before_train_step`, and that the hook which `args` names, if any."""
    own = getattr(args, "custom_megatron_before_train_step_hook_path", None)
    args.fipo_next_hook_path = None if own == HOOK_PATH else own
    args.custom_megatron_before_train_step_hook_path = HOOK_PATH


def knows_updates(args: Namespace) -> bool:
    """Whether the hook is installed."""
    return hasattr(args, "fipo_update_index")


def may_be_first_update(args: Namespace) -> bool:
    """Whether log-ratios must be 0: this update follows a rollout (always, where no hook tells) by the same policy."""
    return not getattr(args, "keep_old_actor", False) and getattr(args, "fipo_update_index", 0) == 0


class NoiseWatch:
    """Warns if noise alone moves weights. It looks at one micro-batch a process: the first is surely at update 0."""

    def __init__(self) -> None:
        self.looked = False

    def see(self, out: FIPOOutput, args: Namespace) -> None:
        if self.looked or not out.kept.any():
            return
        self.looked = True
        moved = FIRST_UPDATE_MEANS["fipo/noise_weight_shift"](out)
        shift = torch.where(out.kept, moved, 0).sum().item() / int(out.kept.sum())
        if shift > NOISE_LIMIT:
            cause = (
                "with --use-rollout-logprobs π_old is the rollout engine's, whose log-probs differ from the trainer's; "
                "drop the flag, so that slime recomputes them"
                if args.use_rollout_logprobs
                else "usual causes are dropout and kernels that are not deterministic"
            )
            logger.warning(noise_warning(shift, cause))

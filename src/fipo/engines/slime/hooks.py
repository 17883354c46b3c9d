"""Which update of a rollout it is, and what can be wrong with it.

slime's custom loss function does not see which update it computes, so a hook before every update notes it in the
namespace.
"""

import logging
from argparse import Namespace
from typing import Any

from torch import Tensor

from fipo.core.credit import TokenCredit
from fipo.core.logged import FIRST_UPDATE_MEANS, NOISE_LIMIT, noise_warning, warn_of_non_finite
from fipo.engines.slime.contract import slime_function
from fipo.engines.slime.traced_samples import TRACES

logger = logging.getLogger(__name__)

HOOK_PATH = "fipo.engines.slime.before_train_step"


def before_train_step(args: Namespace, rollout_id: int, step_id: int, *others: Any) -> None:
    """For slime's --custom-megatron-before-train-step-hook-path: notes the update, then calls the user's own hook."""
    args.fipo_update_index = step_id
    TRACES.start(rollout_id, step_id)
    own = getattr(args, "fipo_next_hook_path", None)
    if own is not None:
        slime_function("load_function")(own)(args, rollout_id, step_id, *others)


def install_hook(args: Namespace) -> None:
    """Makes slime call `before_train_step`, and that the hook which `args` names, if any."""
    own = getattr(args, "custom_megatron_before_train_step_hook_path", None)
    args.fipo_next_hook_path = None if own == HOOK_PATH else own
    args.custom_megatron_before_train_step_hook_path = HOOK_PATH


def may_be_first_update(args: Namespace) -> bool:
    """Whether log-ratios must be 0: this update follows a rollout (always, where no hook tells) by the same policy."""
    return not getattr(args, "keep_old_actor", False) and getattr(args, "fipo_update_index", 0) == 0


class Warnings:
    """What a process says once: noise that alone moves weights, and tokens without π_old.

    For the noise it looks at one micro-batch: the first is surely at update 0.
    """

    def __init__(self) -> None:
        self.looked = False

    def see(self, credit: TokenCredit, trained: Tensor, args: Namespace) -> None:
        """Looks at one micro-batch's (N,) credit."""
        if credit.non_finite.any():
            warn_of_non_finite()
        if self.looked or not trained.any() or not may_be_first_update(args):
            return
        self.looked = True
        shift = FIRST_UPDATE_MEANS["fipo/noise_weight_shift"](credit)[trained].mean().item()
        if shift > NOISE_LIMIT:
            cause = (
                "with --use-rollout-logprobs π_old is the rollout engine's, whose log-probs differ from the trainer's; "
                "drop the flag, so that slime recomputes them"
                if args.use_rollout_logprobs
                else "usual causes are dropout and kernels that are not deterministic"
            )
            logger.warning(noise_warning(shift, cause))


WARNINGS = Warnings()

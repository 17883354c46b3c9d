"""What slime calls beside the loss: which update of a rollout it is, what its samples are; and what can be wrong.

slime's custom loss function does not see these, so a hook before every update and one on the rollout's data note them.
The user's own hooks are called too.
"""

import logging
from argparse import Namespace
from typing import Any

from torch import Tensor

from fipo.core.credit import TokenCredit
from fipo.core.logged import FIRST_UPDATE_MEANS, NOISE_LIMIT, noise_warning, warn_of_non_finite
from fipo.engines.slime.arguments import trace_options
from fipo.engines.slime.contract import slime_function
from fipo.engines.slime.traced_samples import TRACES

logger = logging.getLogger(__name__)

FOREIGN_OLD_POLICY = (
    "with --use-rollout-logprobs π_old is the rollout engine's, whose log-probs differ from the trainer's; drop the "
    "flag, so that slime recomputes them",
)
UPDATE_HOOK, ROLLOUT_HOOK = "fipo.engines.slime.before_train_step", "fipo.engines.slime.note_rollout"


def before_train_step(args: Namespace, rollout_id: int, step_id: int, *others: Any) -> None:
    """For slime's --custom-megatron-before-train-step-hook-path: notes the update, then calls the user's own hook."""
    args.fipo_update_index = step_id
    TRACES.start(rollout_id, step_id)
    own = getattr(args, "fipo_next_hook_path", None)
    if own is not None:
        slime_function("load_function")(own)(args, rollout_id, step_id, *others)


def note_rollout(args: Namespace, rollout_id: int | None = None, rollout_data: dict[str, Any] | None = None) -> None:
    """For slime's --rollout-data-postprocess-path: calls the user's own, then notes what traces show of samples."""
    own = getattr(args, "fipo_next_postprocess_path", None)
    if own is not None:
        given = () if rollout_data is None else (rollout_id, rollout_data)
        slime_function("load_function")(own)(args, *given)
    if rollout_data is None or trace_options(args) is None:
        return
    try:
        TRACES.note(args, rollout_data)
    except Exception as error:  # of data that another function made
        TRACES.known.clear()
        logger.warning(f"Traces have no rewards, and the run goes on: slime's rollout data are unusual ({error!r}).")


def install_hooks(args: Namespace) -> None:
    """Makes slime call these, and these what `args` names, if anything; `note_rollout` where traces are asked for."""
    own = getattr(args, "custom_megatron_before_train_step_hook_path", None)
    args.fipo_next_hook_path = None if own == UPDATE_HOOK else own
    args.custom_megatron_before_train_step_hook_path = UPDATE_HOOK
    own = getattr(args, "rollout_data_postprocess_path", None)
    if trace_options(args) is not None and own != ROLLOUT_HOOK:
        args.fipo_next_postprocess_path, args.rollout_data_postprocess_path = own, ROLLOUT_HOOK


def may_be_first_update(args: Namespace) -> bool:
    """Whether log-ratios must be 0: this update follows a rollout (always without the hook) by the same policy."""
    return not getattr(args, "keep_old_actor", False) and getattr(args, "fipo_update_index", 0) == 0


class Warnings:
    """What a process says once: noise that alone moves weights, shown by the first micro-batch, since that is
    surely of update 0; and tokens without π_old."""

    looked = False

    def see(self, credit: TokenCredit, trained: Tensor, args: Namespace) -> None:
        """Looks at one micro-batch's (N,) credit."""
        if credit.non_finite.any():
            warn_of_non_finite()
        if self.looked or not trained.any() or not may_be_first_update(args):
            return
        self.looked = True
        shift = FIRST_UPDATE_MEANS["fipo/noise_weight_shift"](credit)[trained].mean().item()
        if shift > NOISE_LIMIT:
            logger.warning(noise_warning(shift, *(FOREIGN_OLD_POLICY if args.use_rollout_logprobs else ())))


WARNINGS = Warnings()

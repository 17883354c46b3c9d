"""FIPO as a policy loss of verl, 0.7 to 0.9. Importing this package registers the loss `fipo`; verl stays as it is.

    actor_rollout_ref.actor.policy_loss._target_=fipo.engines.verl.FIPOPolicyLossConfig
    actor_rollout_ref.actor.policy_loss.loss_mode=fipo

Hydra imports what `_target_` names in the driver and in every worker. docs/engines.md has the whole command.
"""

from fipo.engines.verl.contract import check_release

check_release()  # before verl's modules: another release may not have them

from fipo.engines.verl.config import FIPOPolicyLossConfig  # noqa: E402
from fipo.engines.verl.guard import check_updates  # noqa: E402
from fipo.engines.verl.loss import fipo_policy_loss  # noqa: E402

__all__ = ["FIPOPolicyLossConfig", "check_updates", "fipo_policy_loss"]

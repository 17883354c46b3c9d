"""The plugin gives the batch that all engines share what the naive twin gives it."""

import pytest
import torch
from support import one_truth
from test_loss import actor, counted
from verl.trainer.ppo.core_algos import get_policy_loss_fn

from fipo.engines.verl import FIPOPolicyLossConfig, loss

pytestmark = pytest.mark.verl


def test_verl(monkeypatch):
    data = one_truth.batch()
    config = counted(actor(FIPOPolicyLossConfig(decay_rate=one_truth.PARAMS.decay_rate)), data["mask"])
    logps = torch.full_like(data["log_ratio"], -2.0).requires_grad_()
    seen = []
    monkeypatch.setattr(loss, "token_credit", lambda *a, of=loss.token_credit, **k: seen.append(of(*a, **k)) or seen[0])
    total, _ = get_policy_loss_fn("fipo")(
        old_log_prob=logps.detach() - data["log_ratio"],
        log_prob=logps,
        advantages=data["advantages"],
        response_mask=data["mask"],
        loss_agg_mode="token-mean",
        config=config,
    )
    one_truth.assert_same_credit(seen[0].weight, total.detach())
    one_truth.assert_same_gradients(torch.autograd.grad(total, logps), 1 * logps, logps)

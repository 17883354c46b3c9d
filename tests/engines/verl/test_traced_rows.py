"""What traces need of verl, at every release that the plugin knows, and how the plugin refuses another."""

import os

import pytest
import torch
from test_loss import actor, counted, rollout
from verl.workers.utils import losses

from fipo import FIPOError, InvalidParameterError
from fipo.engines.verl import FIPOPolicyLossConfig, fipo_policy_loss, traced_rows
from fipo.run_folder import trace_file

pytestmark = pytest.mark.verl


@pytest.fixture(autouse=True)
def unwrapped(monkeypatch):
    """verl as it is found, before and after."""
    original = losses.no_padding_2_padding
    monkeypatch.setattr(losses, "no_padding_2_padding", getattr(original, "__wrapped__", original))


def test_nothing_is_wrapped_without_a_trace_dir():
    original = losses.no_padding_2_padding
    FIPOPolicyLossConfig()
    assert losses.no_padding_2_padding is original


def test_this_release_is_as_it_was_read(tmp_path):
    original = losses.no_padding_2_padding
    for _ in range(2):
        FIPOPolicyLossConfig(trace_dir=str(tmp_path))
    assert losses.no_padding_2_padding is not original
    assert losses.no_padding_2_padding.__wrapped__ is original


def test_another_ppo_loss_is_refused(tmp_path, monkeypatch):
    def ppo_loss(config, model_output, data, dp_group=None):
        return model_output["log_probs"].sum(), {}

    monkeypatch.setattr(losses, "ppo_loss", ppo_loss)
    with pytest.raises(
        FIPOError, match=r"ppo_loss does not call no_padding_2_padding as in .*; drop policy_loss\.trace_dir"
    ):
        FIPOPolicyLossConfig(trace_dir=str(tmp_path))


def test_a_loss_that_ppo_loss_does_not_call_is_refused(tmp_path):
    batch = rollout()
    config = counted(actor(FIPOPolicyLossConfig(trace_dir=str(tmp_path))), batch["response_mask"])
    with pytest.raises(FIPOError, match="not called by verl's ppo_loss, which knows the tokens; drop"):
        fipo_policy_loss(**batch, config=config)


def test_a_batch_without_its_step_is_refused(tmp_path):
    batch = rollout()
    config = counted(actor(FIPOPolicyLossConfig(trace_dir=str(tmp_path))), batch["response_mask"])
    traced_rows._seen[:] = [({"prompts": torch.zeros(1)}, batch["log_prob"])]
    with pytest.raises(FIPOError, match="batches do not tell the step; drop"):
        fipo_policy_loss(**batch, config=config)


def test_settings_that_are_none(tmp_path):
    with pytest.raises(InvalidParameterError, match="trace_every is 0, but must be a whole number from 1 on"):
        FIPOPolicyLossConfig(trace_dir=str(tmp_path), trace_every=0)


def test_reports_for_wandb_of_a_run_without_traces_are_refused(monkeypatch, tmp_path):
    """When verl starts to log, before the first rollout; a run that does not log to W&B is left alone."""
    from verl.utils.tracking import Tracking

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Tracking, "__init__", Tracking.__init__)  # as it is found, afterwards
    from fipo.engines.verl import wandb_report

    config = {"trainer": {}, "actor_rollout_ref": {"actor": {"policy_loss": {"trace_dir": None}}}}
    with pytest.raises(InvalidParameterError, match="wandb_report, but nothing is traced; set"):
        Tracking("project", "run", default_backend=["console", "wandb"], config=config)
    assert "fipo" not in Tracking("project", "run", default_backend=["console"], config=config).logger
    config["actor_rollout_ref"]["actor"]["policy_loss"]["trace_dir"] = str(tmp_path)
    reports = Tracking("project", "run", default_backend=["console", "wandb"], config=config).logger["fipo"]
    assert isinstance(reports, wandb_report.CreditReports)
    logged = []
    monkeypatch.setattr(wandb_report, "log_credit", lambda folder, rollout, trackers, **_: logged.append(rollout))
    for number, age in {8: 60, 9: -60}.items():
        file = tmp_path / trace_file(number, 0, 0)
        file.touch()
        os.utime(file, (reports.started - age,) * 2)
    for number in (7, 8, 9):
        reports.log(data={}, step=number)
    assert logged == [9]  # of step 7 there is none, of step 8 an earlier attempt's

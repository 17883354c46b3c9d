"""What traces need of verl, at every release that the plugin knows, and how the plugin refuses another."""

import os

import pytest
from test_loss import counted, rollout
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


def test_this_release_is_as_it_was_read_and_wrapped_once_for_traces_alone(tmp_path):
    original = losses.no_padding_2_padding
    FIPOPolicyLossConfig()
    assert losses.no_padding_2_padding is original
    for _ in range(2):
        FIPOPolicyLossConfig(trace_dir=str(tmp_path))
    assert losses.no_padding_2_padding.__wrapped__ is original


def test_another_ppo_loss_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "ppo_loss", unwrapped)
    sentence = r"ppo_loss does not call no_padding_2_padding as in .*; drop policy_loss\.trace_dir"
    with pytest.raises(FIPOError, match=sentence):
        FIPOPolicyLossConfig(trace_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [([], "it is not verl's ppo_loss that calls the loss; drop"), ([{}], "batches do not hold the step; drop")],
)
def test_calls_that_do_not_tell_what_traces_need_are_refused(tmp_path, seen, sentence):
    batch = rollout()
    config = counted(batch["response_mask"], FIPOPolicyLossConfig(trace_dir=str(tmp_path)))
    traced_rows._seen[:] = [(data, batch["log_prob"]) for data in seen]
    with pytest.raises(FIPOError, match=sentence):
        fipo_policy_loss(**batch, config=config)


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
    logged = []
    monkeypatch.setattr(wandb_report, "log_credit", lambda folder, rollout, trackers, **_: logged.append(rollout))
    for number, age in {8: 60, 9: -60}.items():
        file = tmp_path / trace_file(number, 0, 0)
        file.touch()
        os.utime(file, (reports.started - age,) * 2)
    for number in (7, 8, 9):
        reports.log(data={}, step=number)
    assert logged == [9]  # of step 7 there is none, of step 8 an earlier attempt's

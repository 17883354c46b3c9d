"""FIPO's knobs through verl's own configuration: Hydra composes, instantiates and refuses."""

import importlib
import sys
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import verl
from hydra.errors import InstantiationException
from overrides import ACTOR, FIPO, LOSS, actor_config, composed
from support.knobs import OTHERS
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

from fipo import FIPOError, FIPOParams, InvalidParameterError
from fipo.engines.verl import FIPOPolicyLossConfig, contract, guard, loss
from fipo.params import KNOBS

pytestmark = pytest.mark.verl


def knobs(*policy_loss, clip_ratio_c=10.0):
    actor = actor_config(*FIPO, f"{ACTOR}.clip_ratio_c={clip_ratio_c}", *(f"+{LOSS}.{knob}" for knob in policy_loss))
    return actor.policy_loss.params(actor.clip_ratio_c)


def test_every_knob_of_the_package_can_be_set():
    assert set(OTHERS) == set(KNOBS)
    assert knobs(*(f"{name}={value}" for name, value in OTHERS.items()), clip_ratio_c=5.0) == FIPOParams(**OTHERS)
    assert knobs() == FIPOParams()


@pytest.mark.parametrize("preset", ["7b", "32b"])
def test_presets_and_what_overrides_them(preset):
    assert knobs(f"preset={preset}") == FIPOParams.preset(preset)
    assert knobs(f"preset={preset}", "decay_rate=64") == FIPOParams.preset(preset, decay_rate=64)


def test_the_dual_clip_is_verls_own_knob():
    assert knobs(clip_ratio_c=3.0).dual_clip_c == 3.0
    with pytest.raises(InvalidParameterError, match=r"dual_clip_c of preset 7b is 10.0, but .*clip_ratio_c is 3.0"):
        knobs("preset=7b", clip_ratio_c=3.0)
    with pytest.raises(InvalidParameterError, match=r"dual_clip_c of policy_loss is 4.0, .*actor.clip_ratio_c=4\."):
        knobs("dual_clip_c=4", clip_ratio_c=3.0)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["decay_rate=-1"], "decay_rate is -1, but must be a number above 0"),
        (["decay=32"], "unexpected keyword argument 'decay'"),
        (["control=random"], r"policy_loss\.control is 'random', but must be one of none, uniform"),
        (["trace_dir=here", "trace_every=0"], "trace_every is 0, but must be a whole number of at least 1"),
    ],
)
def test_bad_knobs_are_refused_when_verl_reads_its_configuration(overrides, sentence):
    with pytest.raises(InstantiationException, match=sentence):
        knobs(*overrides)


def test_the_target_without_the_loss_mode_is_refused():
    with pytest.raises(InstantiationException, match=r"'vanilla', so verl would not call FIPO; add .*loss_mode=fipo"):
        actor_config(FIPO[0])


@pytest.fixture
def driver(monkeypatch):
    """Puts a command line before the guard; that it finds the real one in verl's driver, test_main_ppo.py says."""

    return lambda *overrides: monkeypatch.setattr(guard, "driver_config", partial(composed, *overrides))


BATCH = ("data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=64", "actor_rollout_ref.rollout.n=8")
ONE_UPDATE = r"{} prompts × 8 samples gives 1 update of .*ppo_epochs at least 2"


@pytest.mark.parametrize(
    ("overrides", "preset", "sentence"),
    [
        (BATCH, None, ONE_UPDATE.format(64)),
        ((*BATCH, "data.train_batch_size=32"), None, ONE_UPDATE.format(32)),  # verl 0.9 fills the rollout up
        ((), "7b", r"add actor_rollout_ref.actor.clip_ratio_c=10.0"),
    ],
)
def test_the_driver_refuses_one_update_a_rollout_and_two_dual_clips(overrides, preset, sentence, driver):
    driver(*overrides)
    with pytest.raises(InvalidParameterError, match=sentence):
        FIPOPolicyLossConfig(preset=preset)


@pytest.mark.parametrize("more", ["data.train_batch_size=128", "data.train_batch_size=96", f"{ACTOR}.ppo_epochs=2"])
def test_the_driver_warns_where_the_rollout_engine_gives_the_old_policy(more, driver):
    driver(*BATCH, more)
    FIPOPolicyLossConfig()
    driver(*BATCH, more, "++algorithm.rollout_correction.bypass_mode=True")
    with pytest.warns(match="bypass_mode"):
        FIPOPolicyLossConfig()


def test_the_driver_warns_of_bfloat16(driver):
    batch = ("data.train_batch_size=128", *BATCH[1:])
    driver(*batch)
    with pytest.warns(match=r"by about 14\..%.*add \+actor.*fsdp_config.mixed_precision.param_dtype=float16"):
        FIPOPolicyLossConfig()
    driver(*batch, f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype=float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FIPOPolicyLossConfig()


def test_another_owner_of_the_name_is_named(monkeypatch):
    importlib.reload(loss)  # over itself it may
    assert POLICY_LOSS_REGISTRY["fipo"] is loss.fipo_policy_loss

    def fipo_of_somebody_else():
        pass

    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "fipo", fipo_of_somebody_else)
    sentence = rf"belongs to '.*fipo_of_somebody_else' of {__name__}, not to fipo"
    with pytest.raises(FIPOError, match=sentence):
        importlib.reload(loss)
    with pytest.raises(FIPOError, match=sentence):
        FIPOPolicyLossConfig()
    assert POLICY_LOSS_REGISTRY["fipo"] is fipo_of_somebody_else


@pytest.mark.parametrize(
    ("installed", "shown"),
    [("0.6.1", "0.6"), ("0.7.0", ""), ("0.8.0.post1", ""), ("0.9.1", ""), ("0.10.0", "0.10"), ("1.0.0.dev0", "1.0")],
)
def test_an_unknown_release_of_verl_or_none_is_refused(monkeypatch, installed, shown):
    monkeypatch.setattr(verl, "__version__", installed)
    sentence = f"verl is {shown}, but fipo knows 0.7 to 0.9; run `pip install"
    with pytest.raises(FIPOError, match=sentence) if shown else nullcontext():
        contract.check_release()
    monkeypatch.setitem(sys.modules, "verl", None)
    with pytest.raises(FIPOError, match="verl is not installed in this Python; run `pip install verl"):
        contract.check_release()

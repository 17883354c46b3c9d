"""DDP, FSDP2 and DeepSpeed on two processes: each update is that of one process, and killed runs resume exactly."""

import pytest
import torch
from distributed.engines import ENGINES, UPDATES, assert_same_curve
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.engines

VARIANTS = {  # what is trained, and how
    "plain": {},
    "no_logits_kept": {"fipo_head_memory": 0, "fipo_control": "shuffle"},  # and orders that no split of a batch changes
    "tied_kl": {"model_name_or_path": "tied", "beta": 0.05},
    "checkpointing": {"gradient_checkpointing": "true"},
    "lora": {"use_peft": "true", "lora_target_modules": "all-linear", "lora_r": 4},
}
TOLERANCE = {"lora": 6e-4}  # its losses are as small as this


@pytest.fixture(scope="session")
def curves(workshop):
    """(variant, engine or None for one process) → what its run logged; each is run once."""
    known = {}

    def curve(variant, engine=None):
        if (variant, engine) not in known:
            known[variant, engine] = workshop.run(f"{variant}_{engine}", engine, **VARIANTS[variant])
        return known[variant, engine]

    return curve


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_are_one(curves, workshop, engine, variant):
    expected, found = curves(variant), curves(variant, engine)
    assert max(expected) == UPDATES
    assert max(row.get("fipo/weight_std", 0) for row in expected.values()) > 0.01
    assert_same_curve(found, expected, TOLERANCE.get(variant, 5e-5))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_saved_model_is_that_of_one_process(curves, workshop, engine):
    for variant in ("plain", "tied_kl"):
        curves(variant), curves(variant, engine)
        expected, found = (
            AutoModelForCausalLM.from_pretrained(workshop.folder / f"{variant}_{name}").state_dict()
            for name in (None, engine)
        )
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("engine", "variant"), [*((engine, "plain") for engine in ENGINES), ("fsdp2", "lora"), ("zero3", "lora")]
)
def test_a_killed_run_resumes_to_the_same_curve(curves, workshop, engine, variant):
    resumed = workshop.killed_and_resumed(f"killed_{variant}_{engine}", engine, **VARIANTS[variant])
    assert_same_curve(resumed, curves(variant, engine), rel=0)

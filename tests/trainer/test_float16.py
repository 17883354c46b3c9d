"""Training in float16: what is chosen, a gradient scaler for real, and a resume that has its state.

accelerate computes in float32 on a CPU, so `Float16Trainer` gives it what a GPU gets: torch's autocast and scaler.
"""

import shutil

import pytest
import torch
from support import harness, tiny
from support.harness import COMMON

from fipo import InvalidParameterError
from fipo.errors import DataError
from fipo.trainer import FIPOConfig, FIPOTrainer
from fipo.trainer.config import mixed_precision

SCALE = 2.0**40  # far too large: the first updates overflow, and are skipped


class Float16Trainer(FIPOTrainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=6)


def make(folder, model=None, max_steps=48, **options):
    args = FIPOConfig(
        str(folder),
        **COMMON | {"save_steps": 44, "max_steps": max_steps, "learning_rate": 1e-3, "logging_steps": 1} | options,
    )
    args.fp16, args.mixed_precision = True, "fp16"

    def more_ones(completions, **_):
        return [float(completion.count("1")) for completion in completions]

    return Float16Trainer(
        tiny.model() if model is None else model,
        more_ones,
        args,
        train_dataset=tiny.prompts(64),
        processing_class=tiny.tokenizer(),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("float16") / "run")
    before = torch.cat([weight.flatten() for weight in trainer.model.parameters()]).clone()
    trainer.train()
    return trainer, before


def weights(trainer):
    return torch.cat([weight.flatten() for weight in trainer.model.parameters()])


def test_the_forward_is_float16_and_the_scaler_finds_its_scale(run):
    trainer, before = run
    assert trainer.accelerator.scaler.get_scale() < SCALE / 2**10
    assert weights(trainer).dtype == torch.float32 and (weights(trainer) - before).abs().max() > 1e-3
    rounding = [line["fipo/rounding"] for line in trainer.state.log_history if "fipo/rounding" in line]
    assert rounding and 0 < rounding[-1] < 0.02  # bfloat16's is eight times larger
    assert all(torch.isfinite(torch.tensor(line["grad_norm"])) for line in trainer.state.log_history[44:-1])


def test_a_resumed_run_has_the_scalers_state(run, tmp_path):
    trainer, _ = run
    checkpoint = f"{trainer.args.output_dir}/checkpoint-44"
    again = make(tmp_path / "again")
    again.train(resume_from_checkpoint=checkpoint)
    assert torch.equal(weights(again), weights(trainer))
    assert again.accelerator.scaler.state_dict() == trainer.accelerator.scaler.state_dict()


def test_a_checkpoint_without_the_scaler_is_refused(run, tmp_path):
    checkpoint = tmp_path / "checkpoint-44"
    shutil.copytree(f"{run[0].args.output_dir}/checkpoint-44", checkpoint)
    (checkpoint / "scaler.pt").unlink()
    with pytest.raises(DataError, match=r"scaler.pt is missing"):
        make(tmp_path / "again").train(resume_from_checkpoint=str(checkpoint))


def test_trained_weights_in_half_precision_are_refused(tmp_path):
    with pytest.raises(InvalidParameterError, match=r"weights are bfloat16, but .* load the model in float32"):
        make(tmp_path, tiny.model().bfloat16())


@pytest.mark.parametrize(
    ("bf16", "fp16", "launcher", "on_cpu", "chosen"),
    [
        (None, False, "no", False, (False, True)),  # by the evidence of docs/precision.md
        (None, False, "no", True, (False, False)),
        (None, False, "bf16", False, (True, False)),
        (None, False, "fp16", False, (False, True)),
        (True, False, "no", False, (True, False)),
        (False, False, "no", False, (False, False)),
        (None, True, "no", False, (False, True)),
    ],
)
def test_the_precision_that_is_chosen(bf16, fp16, launcher, on_cpu, chosen):
    assert mixed_precision(bf16, fp16, launcher, on_cpu=on_cpu) == chosen


def test_float16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(InvalidParameterError, match="CPUs have no units for float16; set it to false"):
        harness.make(tmp_path, fp16=True)

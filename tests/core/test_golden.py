"""Three public implementations (the authors' verl fork, slime's pull request 1801, ms-swift) gave these numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fipo import FIPOParams, fipo_loss, future_kl, token_mean

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "fipo_public_implementations.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN.files})
FIELDS = ("decay_rate", "clip_ratio_low", "clip_ratio_high", "clip_high_only", "safety_thresh", "dual_clip_c")


def load(case):
    tensors = {key: torch.from_numpy(np.asarray(GOLDEN[f"{case}/{key}"])) for key in ("old", "new", "adv", "mask")}
    *knobs, epsilon_low, epsilon_high = GOLDEN[f"{case}/params"].tolist()
    knobs = dict(zip(FIELDS, knobs, strict=True))
    params = FIPOParams(**{**knobs, "clip_high_only": bool(knobs["clip_high_only"])})
    return tensors, params, {"epsilon_low": epsilon_low, "epsilon_high": epsilon_high}


def close(actual, key):
    expected = torch.from_numpy(np.asarray(GOLDEN[key]))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_authors_numbers_and_the_weights_and_future_kl_of_the_others(case):
    assert len(CASES) == 7
    x, params, clip = load(case)
    new = x["new"].clone().requires_grad_()
    out = fipo_loss(new, x["old"], x["adv"], x["mask"], params, **clip)
    loss = token_mean(out.loss, out.kept)
    (gradient,) = torch.autograd.grad(loss, new)
    close(loss.detach(), f"{case}/official/loss")
    close(gradient, f"{case}/official/grad_new")
    clipped = out.clipped_low | out.clipped_high
    means = {"clipfrac": clipped.double(), "clipfrac_lower": out.dual_clipped.double(), "ppo_kl": -out.log_ratio}
    for name, values in means.items():  # the authors' masked mean adds 1e-8 to the count
        close((values * x["mask"]).sum() / (x["mask"].sum() + 1e-8), f"{case}/official/{name}")
    trained = out.weight[x["mask"]]  # reported in float32 or with the 1e-8 in the count
    for name in ("min", "max", "mean"):
        expected = GOLDEN[f"{case}/official/weight_{name}"].item()
        assert getattr(trained, name)().item() == pytest.approx(expected, abs=1e-7)

    close(out.weight, f"{case}/msswift/weight")
    credit = future_kl(x["new"] - x["old"], x["mask"], params)
    close(credit, f"{case}/pr1801/future_kl")
    # ms-swift sets what is not trained to 0; the recurrence (and the pull request) goes through it.
    close(credit * x["mask"], f"{case}/msswift/future_kl")

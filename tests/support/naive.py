"""FIPO as written in the paper, one token at a time, in plain Python floats. Imports nothing from fipo."""

import math


def future_kl(log_ratio, mask, *, decay_rate, dual_clip_c, distance="position"):
    gamma = 2.0 ** (-1.0 / decay_rate)

    def apart(t, k):
        return k - t if distance == "position" else sum(mask[t:k])

    counted = [k for k, x in enumerate(log_ratio) if mask[k] and math.exp(x) <= dual_clip_c]
    return [math.fsum(gamma ** apart(t, k) * log_ratio[k] for k in counted if k >= t) for t in range(len(log_ratio))]


def fipo(logps, old_logps, advantages, mask, p, epsilon_low, epsilon_high):
    """One sequence. Returns per-token (loss, d loss / d logp, weight) and whether the sequence is dropped."""
    unclamped = [a - b if m else 0.0 for a, b, m in zip(logps, old_logps, mask, strict=True)]
    log_ratio = [max(-20.0, min(20.0, x)) for x in unclamped]
    credit = future_kl(log_ratio, mask, decay_rate=p.decay_rate, dual_clip_c=p.dual_clip_c, distance=p.distance)
    low = 1.0 if p.clip_high_only else 1.0 - p.clip_ratio_low
    high = 1.0 + p.clip_ratio_high
    losses, gradients, weights, dual_clipped = [], [], [], 0
    for x, future, a, m in zip(log_ratio, credit, advantages, mask, strict=True):
        ratio = math.exp(x)
        w = min(high, max(low, math.exp(future)))
        if a < 0 and ratio > p.safety_thresh:
            w = min(1.0, max(0.8, w))
        loss, slope = -a * w * ratio, -a * w * ratio  # d exp(x) / dx = exp(x)
        clipped = -a * w * min(1 + epsilon_high, max(1 - epsilon_low, ratio))
        if clipped > loss:
            loss, slope = clipped, 0.0
        if a < 0 and loss > -a * w * p.dual_clip_c:
            loss, slope = -a * w * p.dual_clip_c, 0.0
            dual_clipped += m
        losses.append(loss if m else 0.0)
        gradients.append(slope if m and x == unclamped[len(gradients)] else 0.0)
        weights.append(w if m else 1.0)
    return losses, gradients, weights, dual_clipped > p.max_dual_clipped

import torch


def compute_approx_kl(log_probs, log_probs_base, kl_loss_type, importance_ratio=None):
    d = log_probs - log_probs_base
    kl = {"k1": lambda: d, "k2": lambda: d * d / 2}.get(kl_loss_type, lambda: torch.exp(-d) - 1 + d)()
    kl = kl if importance_ratio is None else importance_ratio * kl
    return kl.clamp(-10, 10) if kl_loss_type == "low_var_kl" else kl


def compute_opsm_mask(args, full_log_probs, full_old_log_probs, advantages, loss_masks):
    factors, clipped = [], torch.tensor(0.0)
    for new, old, advantage, mask in zip(full_log_probs, full_old_log_probs, advantages, loss_masks, strict=True):
        trained = mask.sum().clamp(min=1)
        far = ((old - new) * mask).sum() / trained > args.opsm_delta
        masked = ((advantage < 0) & far).float()
        clipped += masked.sum() / trained
        factors.append(1 - masked)
    return torch.cat(factors), clipped

import torch


def compute_opsm_mask(args, full_log_probs, full_old_log_probs, advantages, loss_masks):
    factors, clipped = [], torch.tensor(0.0)
    for new, old, advantage, mask in zip(full_log_probs, full_old_log_probs, advantages, loss_masks, strict=True):
        trained = mask.sum()
        far = ((old - new) * mask).sum() / trained > args.opsm_delta
        masked = ((advantage < 0) & far).float()
        clipped += masked.sum() / trained
        factors.append(1 - masked)
    return torch.cat(factors), clipped

"""Arithmetic on masked [B, R] tensors. Pure: tensors in, tensors out."""

import torch
from torch import Tensor

from rlhf.shapes import check_shapes


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token. logits: [..., V], ids: [...]; returns [...], in nats."""
    check_shapes("...", logits_of_a_token=logits[..., 0], ids=ids)
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution. logits: [B, R, V]; returns [B, R], in nats."""
    check_shapes("B R V", logits=logits)
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the positions where mask is true; zero when there is none. x, mask: [B, R]."""
    check_shapes("B R", x=x, mask=mask)
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of x over the positions where mask is true. x, mask: [B, R]."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x with mean 0 and standard deviation 1 over the true positions; zero elsewhere. x, mask: [B, R]."""
    centred = x - masked_mean(x, mask)
    return torch.where(mask, centred * torch.rsqrt(masked_var(x, mask) + 1e-8), 0)


def position_ids(mask: Tensor) -> Tensor:
    """Position of each real token within its own sequence, whatever the padding. mask: [B, T]; returns [B, T]."""
    check_shapes("B T", mask=mask)
    return (mask.long().cumsum(-1) - 1).clamp(min=0)

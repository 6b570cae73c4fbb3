"""The two losses of PPO. Schulman et al. 2017, https://arxiv.org/abs/1707.06347. Pure."""

import torch
from torch import Tensor

from rlhf.ops import masked_mean
from rlhf.shapes import check_shapes


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate loss and the fraction of tokens where the clip was the one that counted.

    mean over true tokens of max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range)), eq. 7.
    clip_range_high: another bound above 1 (DAPO, https://arxiv.org/abs/2503.14476).
    dual_clip: for A < 0 the loss is at most dual_clip * |A| (Ye et al. 2020, https://arxiv.org/abs/1912.09729, eq. 5).
    logprobs, old_logprobs, advantages, mask: [B, R].
    """
    check_shapes("B R", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    ratio = torch.exp(torch.where(mask, logprobs - old_logprobs, 0))
    high = clip_range if clip_range_high is None else clip_range_high
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + high)
    loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return masked_mean(loss, mask), masked_mean((clipped > plain).float(), mask)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Clipped value loss and the fraction of tokens where the clip was the one that counted.

    mean over true tokens of 0.5 * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2). All [B, R].
    """
    check_shapes("B R", values=values, old_values=old_values, returns=returns, mask=mask)
    clipped_values = torch.clamp(values, old_values - clip_range, old_values + clip_range)
    plain = (values - returns) ** 2
    clipped = (clipped_values - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain, clipped), mask)
    return loss, masked_mean((clipped > plain).float(), mask)

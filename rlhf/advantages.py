"""From scores to advantages. Pure."""

import torch
from torch import Tensor

from rlhf.kl import token_kl
from rlhf.shapes import check_shapes


def kl_penalised_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """Reward of each token: the price of its KL, and the score added on the last token of the response.

    r_t = -kl_coef * (logprob_t - ref_logprob_t) + [t is last] * score. scores: [B]; the rest, and the result: [B, R],
    zero where mask is false. Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 2.
    """
    check_shapes("B R", logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    check_shapes("B", scores=scores, first_tokens=mask[:, 0])
    rewards = torch.where(mask, -kl_coef * token_kl(logprobs, ref_logprobs), 0)
    return rewards.scatter_add(-1, _last(mask), scores.to(rewards.dtype).unsqueeze(-1))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, final_values: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of each response by generalised advantage estimation.

    A_t = sum_l (gamma * lam)^l * delta_(t+l),  delta_t = r_t + gamma * V_(t+1) - V_t,  V after the last token = 0,
    or final_values [B]: what would still have come where a limit, not the policy, ended the response (Pardo et al.
    2018, https://arxiv.org/abs/1712.00378, eq. 6).
    rewards, values, mask: [B, R]. Returns (advantages, returns), each [B, R], zero where mask is false.
    Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 16.
    """
    check_shapes("B R", rewards=rewards, values=values, mask=mask)
    values = torch.where(mask, values, 0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    if final_values is not None:
        check_shapes("B", final_values=final_values, first_tokens=mask[:, 0])
        next_values = next_values.scatter(-1, _last(mask), final_values.unsqueeze(-1))
    deltas = torch.where(mask, rewards + gamma * next_values - values, 0)
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, torch.where(mask, advantages + values, 0)


def _last(mask: Tensor) -> Tensor:
    """Place of each response's last token, [B, 1]. Masks are true from the first token to the last one."""
    return mask.sum(-1, keepdim=True) - 1

"""What is logged of a PPO step. Names follow TRL's, which people's dashboards already use."""

import torch
from torch import Tensor

from rlhf.experience import Rollout
from rlhf.kl import k3
from rlhf.ops import masked_mean
from rlhf.ppo import explained_variance


def rollout_metrics(rollout: Rollout, returns: Tensor, kl_coef: float) -> dict[str, float]:
    """Figures of one rollout: means over responses unless the name says otherwise. returns: [B, R]."""
    mask, kl, lengths = rollout.mask, rollout.kl, rollout.lengths.float()
    price = kl_coef * kl  # [B]
    seconds = rollout.seconds["rollout"]
    entropy = torch.where(mask, rollout.entropies, 0).sum(-1)  # [B]
    tensors = {
        "objective/kl": kl.mean(),
        "objective/kl_per_token": masked_mean(rollout.logprobs - rollout.ref_logprobs, mask),
        "objective/kl_k3": torch.where(mask, k3(rollout.logprobs, rollout.ref_logprobs), 0).sum(-1).mean(),
        "objective/entropy": entropy.mean(),
        "objective/non_score_reward": -price.mean(),
        "objective/rlhf_reward": (rollout.scores - price).mean(),
        "objective/scores": rollout.scores.mean(),
        "objective/scores_std": rollout.scores.std(correction=0),
        "objective/scores_min": rollout.scores.min(),
        "objective/scores_max": rollout.scores.max(),
        "objective/raw_scores": rollout.raw_scores.mean(),
        "response/length_mean": lengths.mean(),
        "response/length_max": lengths.max(),
        "response/eos_rate": rollout.terminated.float().mean(),
        "val/num_eos_tokens": rollout.terminated.sum(),
        "val/rollout_logprob_diff": masked_mean(rollout.sampling_difference, mask),
        "val/rollout_logprob_diff_max": rollout.sampling_difference.max(),
        "throughput/tokens_per_second": lengths.sum() / seconds,
        "eps": len(lengths) / seconds,
    }
    tensors |= {f"objective/scores/{name}": values.mean() for name, values in rollout.term_scores.items()}
    figures = {name: float(value) for name, value in tensors.items()}
    figures["val/explained_var"] = explained_variance(rollout.values, returns, mask)
    return figures | {"objective/kl_coef": kl_coef} | {f"time/{name}": value for name, value in rollout.seconds.items()}

"""What is logged of a PPO step. Names follow TRL's, which people's dashboards already use."""

import torch

from rlhf.kl import k3, token_kl
from rlhf.ops import masked_mean
from rlhf.ppo.experience import Rollout
from rlhf.tracking.meanings import Meaning


def rollout_metrics(rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """Figures of one rollout: means over responses unless the name says otherwise."""
    mask, kl, lengths = rollout.mask, rollout.kl, rollout.lengths.float()
    price = kl_coef * kl  # [B]
    seconds = rollout.seconds["rollout"]
    entropy = torch.where(mask, rollout.entropies, 0).sum(-1)  # [B]
    tensors = {
        "objective/kl": kl.mean(),
        "objective/kl_per_token": masked_mean(token_kl(rollout.logprobs, rollout.ref_logprobs), mask),
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
    return figures | {"objective/kl_coef": kl_coef} | {f"time/{name}": value for name, value in rollout.seconds.items()}


MEANINGS = {
    "objective/kl": Meaning(
        "nats per response",
        "KL from the SFT policy: the sum over a response's tokens of logprob - ref_logprob (k1), mean over responses",
        "0 at the first step, then rises and levels off (3 at the end of the toy run); a little below 0 is chance "
        "while it is small. Still climbing, or above ppo.kl_budget: raise ppo.kl_coef, lower ppo.learning_rate, or use "
        "ppo.kl_control=adaptive",
    ),
    "objective/kl_per_token": Meaning(
        "nats per token",
        "the same, mean over all tokens",
        "as objective/kl; it does not grow with the length of responses",
    ),
    "objective/kl_k3": Meaning(
        "nats per response, >= 0",
        "another estimate of the same KL: the sum of exp(-k1) - 1 + k1 (k3)",
        "near objective/kl. Jumps far above it are single tokens that the policy sampled although it makes them much "
        "rarer than the SFT policy does: trust objective/kl then",
    ),
    "objective/entropy": Meaning(
        "nats per response",
        "entropy of the next-token distribution at rollout.temperature, summed over a response's tokens",
        "falls slowly (10 to 4 in the toy run). Near 0 the policy gives one answer whatever is sampled: raise "
        "ppo.kl_coef, lower ppo.learning_rate, or use ppo.entropy_coef",
    ),
    "objective/non_score_reward": Meaning(
        "score, <= 0 but for chance",
        "what KL costs a response: -kl_coef * KL",
        "stays small beside the rise of objective/scores, or the policy has nothing to gain",
    ),
    "objective/rlhf_reward": Meaning(
        "score",
        "what PPO maximises: objective/scores plus objective/non_score_reward",
        "rises, steeply first. Flat from the start: objective/scores_std and val/explained_var say why; falling: lower "
        "ppo.learning_rate",
    ),
    "objective/scores": Meaning(
        "score; of a reward model: standard deviations of the SFT policy's scores",
        "mean score of the responses, after ppo.score_clip, ppo.running_score_norm and ppo.missing_eos_penalty",
        "starts near 0 with a reward model, and rises. A rise without end while answers get odd is reward hacking: "
        "read samples.jsonl, raise ppo.kl_coef",
    ),
    "objective/scores_std": Meaning(
        "as the score",
        "spread of the scores of one rollout",
        "near 1 at first with a reward model. Near 0 all answers are judged alike and there is nothing to learn",
    ),
    "objective/scores_min": Meaning("as the score", "the lowest score of the rollout", "rises with the mean"),
    "objective/scores_max": Meaning(
        "as the score",
        "the highest score of the rollout",
        "rises less than the mean. Far above all others: look for an answer that fools the reward",
    ),
    "objective/raw_scores": Meaning(
        "as the reward gives it",
        "mean score before ppo.score_clip, ppo.running_score_norm and ppo.missing_eos_penalty",
        "equals objective/scores where these are off; elsewhere the gap is what they do",
    ),
    "objective/scores/NAME": Meaning(
        "as the term gives it",
        "mean of one term of ppo.rewards, with its scale and clip, before its weight; where there are several terms",
        "each rises, or at least does not fall. One that falls is paid for by another: change the weights",
    ),
    "objective/kl_coef": Meaning(
        "score per nat",
        "the price of KL in this step",
        "ppo.kl_coef; with ppo.kl_control=adaptive it moves until objective/kl is near ppo.kl_target",
    ),
    "response/length_mean": Meaning(
        "tokens",
        "mean length of the responses, the end token counted",
        "near that of the demonstrations. Growing with the score: the reward may like length; the reward model's "
        "report card names the longer-answer baseline",
    ),
    "response/length_max": Meaning(
        "tokens", "the longest response", "below data.max_response_tokens, or answers are cut"
    ),
    "response/eos_rate": Meaning(
        "share, 0 to 1",
        "responses that end by themselves; the others are cut at data.max_response_tokens",
        "near 1. Lower: train SFT longer, raise data.max_response_tokens, or use ppo.missing_eos_penalty",
    ),
    "val/num_eos_tokens": Meaning("responses", "how many responses end by themselves", "near ppo.batch_size"),
    "val/rollout_logprob_diff": Meaning(
        "nats per token, >= 0",
        "how far the decoder's log-probabilities are from the training forward's, mean over tokens",
        "about 1e-7 in float32, up to 0.04 in bfloat16. Above 1e-3 and 0.1 the run stops and names likely causes",
    ),
    "val/rollout_logprob_diff_max": Meaning(
        "nats, >= 0", "the same, of the token where it is greatest", "of the same order in float32"
    ),
    "throughput/tokens_per_second": Meaning(
        "tokens per second", "response tokens sampled, all ranks together", "steady"
    ),
    "eps": Meaning("responses per second", "responses sampled, all ranks together", "steady"),
    "time/rollout": Meaning("seconds", "sampling of the responses", "grows with their length"),
    "time/score": Meaning(
        "seconds",
        "log-probabilities and scores of the responses",
        "steady. Rules that call services show here: docs/rewards.md",
    ),
    "time/advantages": Meaning("seconds", "the advantages, with the values of the critic", "steady"),
    "episode": Meaning("responses", "sampled so far: steps * ppo.batch_size", "grows by ppo.batch_size each step"),
}

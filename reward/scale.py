"""Whether one nat of KL costs what ppo.kl_coef says: in units of the reward model's spread on the prompts of PPO.

The reward stage measures mean and std on SFT answers to its own prompts. On other prompts they may be others.
"""

from torch import Tensor

from reward.scorer import term_names
from rlhf.config.schema import RewardTerm

MOST_SHIFT, MOST_STRETCH = 0.5, 1.5  # of a mean from 0, beside two standard errors; of a std from 1, as a factor


def scale_warnings(terms: list[RewardTerm], total: Tensor, said: dict[str, Tensor]) -> list[str]:
    """A warning for each reward model whose scores of SFT answers to the prompts of PPO are not near mean 0 and std 1.

    total: the reward of those answers, [B]; said: what each term says where there are several, [B].
    """
    names = term_names([term.source for term in terms])
    models = [(name, term) for name, term in zip(names, terms, strict=True) if ":" not in term.source]
    heard = [(name, term) for name, term in models if term.scale * term.weight != 0]
    warnings = (_warning(term.source, said.get(name, total / term.weight) / term.scale) for name, term in heard)
    return [warning for warning in warnings if warning]


def _warning(source: str, scores: Tensor) -> str | None:
    mean, std = scores.mean().item(), scores.std(correction=0).item()
    is_shifted = abs(mean) > MOST_SHIFT + 2 * std / len(scores) ** 0.5
    if std == 0 or not (is_shifted or not 1 / MOST_STRETCH <= std <= MOST_STRETCH):
        return None
    return (
        f"{len(scores)} SFT answers to these prompts score mean {mean:.2f}, std {std:.2f} by {source}, and 0 and 1 on "
        f"the prompts of its rankings: ppo.kl_coef prices KL in other units here. {{source: {source}, "
        f"scale: {1 / std:.2f}}} in ppo.rewards brings the std back to 1"
    )

"""What each token of a rollout was worth, by a critic. An algorithm without one is another function of this kind."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.advantages import gae
from rlhf.ppo.critic import Critic, CriticLesson
from rlhf.ppo.experience import Rollout

# (a rollout, the rewards of its tokens [B, R]) -> advantages [B, R], and what the critic learns: None where none is.
Estimate = Callable[[Rollout, Tensor], tuple[Tensor, CriticLesson | None]]


def gae_of(critic: Critic, options) -> Estimate:
    """Advantages by what the critic says of the rollout. options: the `ppo` section of the config."""

    def estimate(rollout: Rollout, rewards: Tensor) -> tuple[Tensor, CriticLesson]:
        values, final_values = critic.values(rollout.sequences)
        cut_values = torch.where(rollout.terminated, 0, final_values)  # what was to come where the token limit cut
        bootstrap = cut_values if options.bootstrap_cut else None
        advantages, returns = gae(rewards, values, rollout.mask, options.gamma, options.lam, bootstrap)
        return advantages, CriticLesson(rollout.sequences, values, returns)

    return estimate

"""The unit of ppo.kl_coef: SFT answers to PPO's prompts should score about mean 0 and std 1."""

import pytest
import torch

from reward.scale import scale_warnings
from rlhf.config.schema import RewardTerm

NORMAL = torch.tensor([-1.0, 1.0] * 32)  # mean 0, std 1


def test_scores_near_mean_0_and_std_1_need_no_warning():
    assert scale_warnings([RewardTerm("reward")], NORMAL, {}) == []
    assert scale_warnings([RewardTerm("reward")], 1.2 * NORMAL + 0.3, {}) == []


def test_another_mean_and_std_are_told_with_the_scale_that_mends_it():
    (warning,) = scale_warnings([RewardTerm("reward")], 1.7 * NORMAL + 2.0, {})
    assert warning.startswith("64 SFT answers to these prompts score mean 2.00, std 1.70 by reward, and 0 and 1 on the")
    assert "{source: reward, scale: 0.59} in ppo.rewards" in warning  # 1 / 1.7


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_a_std_that_is_too_small_or_too_large_is_told(std):
    assert len(scale_warnings([RewardTerm("reward")], std * NORMAL, {})) == 1


def test_few_answers_must_lie_further_off():
    assert scale_warnings([RewardTerm("reward")], NORMAL[:4] + 1.0, {}) == []  # two standard errors are 1
    assert len(scale_warnings([RewardTerm("reward")], NORMAL + 1.0, {})) == 1


def test_each_reward_model_is_looked_at_less_its_scale_and_weight_and_rules_are_not():
    terms = [RewardTerm("reward", scale=0.5), RewardTerm("runs/b/reward", weight=3.0), RewardTerm("m:f")]
    said = {"reward": 0.5 * NORMAL, "b/reward": 4 * NORMAL, "f": 100 * NORMAL}
    (warning,) = scale_warnings(terms, torch.zeros(64), said)
    assert "by runs/b/reward" in warning and "scale: 0.25" in warning
    assert scale_warnings([RewardTerm("reward", weight=2.0, scale=0.5)], NORMAL, {}) == []

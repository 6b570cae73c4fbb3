"""What the models of a PPO run start as, where all weights train."""

import pytest
import tiny_world
import torch

from reward.scorer import load_scorer
from rlhf.artifacts.manifest import load_manifest
from rlhf.run.stage import Stage
from stages.models.ppo import all_inputs, load_models
from stages.ppo import needs

IDS = torch.tensor([[3, 40, 50, 4, 60, 61]])
MASK = torch.ones_like(IDS)


@pytest.fixture
def models_of(finished, world, tmp_path):
    """models_of("ppo.x=y") -> the models that a run from the finished artifacts loads."""

    def load(*overrides):
        inputs = [f"inputs.{stage}={finished / stage}" for stage in ("sft", "reward")]
        config = tiny_world.composed(*tiny_world.tiny_overrides(tmp_path / "run", world), *inputs, *overrides)
        return load_models(config, Stage(needs(config), config, all_inputs(config)))

    return load


@torch.no_grad()
def test_the_policy_starts_as_the_sft_policy(models_of):
    models = models_of()
    policy, reference = (
        model(input_ids=IDS, attention_mask=MASK).logits for model in (models.policy, models.ref_policy)
    )
    assert torch.equal(policy, reference)
    assert any(parameter.requires_grad for parameter in models.policy.parameters())
    assert not any(parameter.requires_grad for parameter in models.ref_policy.parameters())


@torch.no_grad()
def test_the_critic_starts_as_the_reward_model(models_of, finished):
    critic, reward = models_of().critic, load_scorer(finished / "reward", normalised=True).model
    values = critic(IDS, MASK.bool())
    assert torch.equal(values, reward(IDS, MASK.bool()))
    assert values.abs().max() > 0
    assert critic.std == load_manifest(finished / "reward")["reward_norm"]["std"] != 1


@torch.no_grad()
def test_with_a_rule_as_reward_the_critic_says_zero(models_of):
    critic = models_of("ppo.rewards=[{source: tiny_world:names_the_colour}]").critic
    assert critic(IDS, MASK.bool()).tolist() == [[0.0] * IDS.shape[1]]

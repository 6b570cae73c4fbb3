"""An algorithm without a critic is five lines: RLOO, Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, eq. 8.

It goes through the loop, the update and the checkpoints that PPO uses.
"""

import pytest
import torch

from rlhf.checkpoints.learner import LearnerCheckpoints
from rlhf.errors import NumericsError
from rlhf.models.policies import response_logprobs
from rlhf.ppo.critic import MEANINGS
from rlhf.ppo.estimates import gae_of
from rlhf.ppo.experience import Collector, prompt_batches
from rlhf.ppo.invariants import FrozenWeights
from rlhf.ppo.scores import Scored, ScoreShaping

TEMPERATURE = 0.8
K = 2  # responses per prompt, side by side
OPTIONS = {"responses_per_prompt": K, "whiten_advantages": False, "critic_warmup_steps": 3}


def rloo(rollout, rewards):
    """Each response is worth its reward less the mean of those of the others to its prompt."""
    whole = rewards.sum(-1).view(-1, K)  # [B / K, K]
    others = (whole.sum(-1, keepdim=True) - whole) / (K - 1)
    advantages = (whole - others).view(-1, 1)
    return torch.where(rollout.mask, advantages, 0), None


def number_of_e(prompts, texts, records):
    return Scored(torch.tensor([float(text.count("e")) for text in texts]))


def without_times(log):
    timed = ("time/", "throughput/", "eps")
    return [{name: value for name, value in metrics.items() if not name.startswith(timed)} for metrics in log]


@pytest.fixture
def sampler(make_sampler):
    """Of responses of different lengths."""
    return make_sampler(TEMPERATURE, max_tokens=9, stop_ids=[1, *range(60, 90)])


@pytest.fixture
def run(ppo_log, make_policy, sampler):
    """run(learner, options, steps) -> the metrics of each step."""
    return lambda learner, options, steps: ppo_log(
        learner, make_policy(0), number_of_e, sampler, options, steps, estimate=rloo
    )


@pytest.fixture
def rollout(policy, prompts, prompt_ids, sampler):
    """That of the first step, from the reference."""
    batch = next(prompt_batches(prompts, prompt_ids, 8, 0, 0, responses_per_prompt=K))
    return Collector(sampler, ScoreShaping(False, None, 0.0), 8)(policy, policy, number_of_e, batch)


def test_advantages_by_hand(rollout):
    """Four prompts with two responses each, that got 3 and 1, 0 and 4, 2 and 2, -1 and 0."""
    rewards = torch.zeros(rollout.mask.shape)
    rewards[:, 0] = torch.tensor([3.0, 1.0, 0.0, 4.0, 2.0, 2.0, -1.0, 0.0])
    advantages, lesson = rloo(rollout, rewards)
    assert lesson is None
    for row, worth in enumerate([2.0, -2.0, -4.0, 4.0, 0.0, 0.0, -1.0, 1.0]):
        assert advantages[row].tolist() == [worth if real else 0.0 for real in rollout.mask[row]]


def test_the_first_update_is_that_of_each_response_times_its_score_less_the_others(
    run, rollout, make_learner, make_options, make_policy
):
    """KL costs nothing yet, so A = score - score of the other one; the gradient is -sum(A * grad logprob) / tokens."""
    options = make_options(**OPTIONS, minibatch_size=8, num_epochs=1)
    (metrics,) = run(make_learner(options, has_critic=False), options, range(1))
    scores = [text.count("e") for text in rollout.texts]
    worth = [scores[i] - scores[i + 1 if i % 2 == 0 else i - 1] for i in range(8)]
    policy, s, objective = make_policy(0), rollout.sequences, 0.0
    for i, size in enumerate(rollout.lengths.tolist()):
        ids = s.ids[i][s.attention_mask[i]].unsqueeze(0)
        objective += worth[i] * response_logprobs(policy, ids, torch.ones_like(ids).bool(), size, TEMPERATURE)[0].sum()
    (objective / rollout.mask.sum()).backward()
    norm = torch.cat([p.grad.flatten() for p in policy.parameters()]).norm().item()
    assert norm > 0.01 and len(set(rollout.lengths.tolist())) > 1
    assert metrics["policy/grad_norm"] == pytest.approx(norm, rel=1e-4)
    mean = sum(worth[i] * size for i, size in enumerate(rollout.lengths.tolist())) / rollout.mask.sum().item()
    assert metrics["loss/policy_avg"] == pytest.approx(-mean, abs=1e-5)


def test_without_a_critic_nothing_is_said_of_one_and_the_policy_learns_from_the_first_step(
    run, make_learner, make_options
):
    options = make_options(**OPTIONS)
    learner = make_learner(options, has_critic=False)
    before = learner.policy.weights()
    (metrics,) = run(learner, options, range(1))
    assert not MEANINGS.keys() & metrics.keys()
    assert metrics["val/num_updates"] == 4  # 2 epochs of 8 responses in minibatches of 4
    assert any(not torch.equal(weight, before[name]) for name, weight in learner.policy.weights().items())


def test_a_stopped_run_without_a_critic_ends_like_one_that_was_not_stopped(run, make_learner, make_options, tmp_path):
    options = make_options(**OPTIONS, num_steps=4)
    whole, stopped, resumed = (make_learner(options, seed, has_critic=False) for seed in (0, 0, 20))
    checkpoints = LearnerCheckpoints(tmp_path, keep=1)
    expected, found = run(whole, options, range(4)), run(stopped, options, range(2))
    stopped.save(checkpoints, 2)
    assert {path.name.split(".")[0] for path in tmp_path.glob("*/*.safetensors")} == {"policy", "best"}
    assert resumed.restore(checkpoints, print) == 2
    assert without_times(found + run(resumed, options, range(2, 4))) == without_times(expected)
    end, same = whole.policy.tensors(), resumed.policy.tensors()
    assert end.keys() == same.keys() and all(torch.equal(end[name], same[name]) for name in end)


@pytest.mark.parametrize("has_critic", [False, True])
def test_a_critic_without_a_lesson_or_a_lesson_without_a_critic_is_refused(
    ppo_log, make_learner, make_options, make_policy, sampler, has_critic
):
    options = make_options(**OPTIONS)
    gae = gae_of(make_learner(options).critic, options)
    with pytest.raises(AssertionError, match="a lesson belongs to a critic, and a critic needs one"):
        learner, estimate = make_learner(options, has_critic=has_critic), rloo if has_critic else gae
        ppo_log(learner, make_policy(0), number_of_e, sampler, options, range(1), estimate=estimate)


def test_a_reference_that_is_the_policy_itself_is_seen_without_a_critic_too(run, make_learner, make_options):
    options = make_options(**OPTIONS)
    learner = make_learner(options, has_critic=False)
    frozen = FrozenWeights(learner.engines, learner.policy.module)
    run(learner, options, range(1))
    with pytest.raises(NumericsError, match=r"21 of 21 frozen weights"):
        frozen.check()

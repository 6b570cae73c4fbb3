"""The critic: what it says of a rollout, what it learns from it, how well it foresaw the returns."""

import pytest
import torch

from rlhf.models.scalars import response_values
from rlhf.ppo.critic import Critic, CriticLesson, explained_variance, values_of
from rlhf.ppo.estimates import gae_of
from rlhf.ppo.experience import Collector, PromptBatch, Sequences
from rlhf.ppo.scores import Scored, ScoreShaping


@pytest.fixture
def rollout(policy, ref_policy, prompts, prompt_ids, make_sampler):
    """Eight responses of different lengths; some end, some are cut at nine tokens."""
    sampler = make_sampler(temperature=0.8, max_tokens=9, stop_ids=[1, *range(60, 90)])
    collect = Collector(sampler, ScoreShaping(False, None, 0.0), micro_batch_size=3)
    batch = PromptBatch.of(4, prompts, prompt_ids)
    return collect(policy, ref_policy, lambda prompts, texts, records: Scored(torch.arange(8.0)), batch)


@pytest.fixture
def part(critic, make_engine, make_options):
    """part(lam=1.0) -> the critic as a part of PPO, and the options."""

    def make(**changes):
        options = make_options(**changes)
        return Critic(make_engine("critic", critic), options), options

    return make


def bare(rollout):
    """(place, ids [1, T], number of response tokens) of each response, without any padding."""
    s = rollout.sequences
    for i, size in enumerate(rollout.lengths.tolist()):
        yield i, s.ids[i][s.attention_mask[i]].unsqueeze(0), size


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_values_are_what_the_critic_says_of_each_response_alone(part, rollout, critic, micro_batch_size):
    values, final_values = part(micro_batch_size=micro_batch_size)[0].values(rollout.sequences)
    assert len(set(rollout.lengths.tolist())) > 1 and values.shape == rollout.mask.shape
    for i, ids, size in bare(rollout):
        mask = torch.ones_like(ids).bool()
        assert torch.allclose(values[i, :size], response_values(critic, ids, mask, size)[0], atol=1e-5)
        assert (values[i, size:] == 0).all()
        assert torch.allclose(final_values[i], critic(ids, mask)[0, -1], atol=1e-5)


def test_more_padding_changes_no_value(rollout, critic):
    s, eos = rollout.sequences, 1  # as the pad token
    wide = Sequences(
        torch.nn.functional.pad(torch.where(s.attention_mask, s.ids, eos), (7, 7), value=eos),
        torch.nn.functional.pad(s.attention_mask, (7, 7)),
        torch.nn.functional.pad(s.mask, (0, 7)),
    )
    values, final_values = values_of(critic, s, 3)
    wider, same_final_values = values_of(critic, wide, 3)
    assert torch.allclose(wider[:, : s.mask.shape[1]], values, atol=1e-5)
    assert torch.allclose(same_final_values, final_values, atol=1e-5)


def test_asking_for_values_leaves_no_gradient_and_no_graph(part, rollout, critic):
    assert not any(values.requires_grad for values in part()[0].values(rollout.sequences))
    assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize("bootstrap_cut", [False, True])
def test_after_a_cut_response_comes_the_critics_value_and_after_an_ended_one_nothing(
    part, rollout, critic, bootstrap_cut
):
    """With gamma and lambda 1 a token's return is all that comes: here nothing, and what is said after a cut."""
    critic, options = part(gamma=1.0, lam=1.0, bootstrap_cut=bootstrap_cut)
    _, lesson = gae_of(critic, options)(rollout, torch.zeros(rollout.mask.shape))
    assert 0 < rollout.terminated.sum() < 8
    for i, ids, size in bare(rollout):
        after = critic.engine.module(ids, torch.ones_like(ids).bool())[0, -1]
        expected = 0.0 if rollout.terminated[i] or not bootstrap_cut else after.item()
        assert lesson.returns[i, :size].tolist() == pytest.approx([expected] * size, abs=1e-5)


def test_advantages_are_those_of_gae_over_the_critics_values(part, rollout):
    """With lambda 0: A_t = r_t + V_(t+1) - V_t, and the returns are r_t + V_(t+1)."""
    critic, options = part(gamma=1.0, lam=0.0)
    advantages, lesson = gae_of(critic, options)(rollout, rollout.mask.float())
    values = torch.nn.functional.pad(critic.values(rollout.sequences)[0], (0, 1))
    one_step = torch.where(rollout.mask, 1 + values[:, 1:] - values[:, :-1], 0)
    assert torch.allclose(advantages, one_step, atol=1e-6)
    assert torch.equal(lesson.old_values, values[:, :-1])
    assert torch.allclose(lesson.returns, torch.where(rollout.mask, 1 + values[:, 1:], 0), atol=1e-6)


def test_a_lesson_whose_tensors_disagree_is_refused(rollout):
    right, wrong = torch.zeros(rollout.mask.shape), torch.zeros(8, 3)
    with pytest.raises(AssertionError, match=r"must be \[B R\]: mask .* returns \(8, 3\)"):
        CriticLesson(rollout.sequences, right, wrong)


def test_explained_variance_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[0.0, 3.0, 6.0, 99.0]])  # variance 6
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((1, 4), 7.0), returns, mask) == pytest.approx(0.0)  # nothing explained
    assert explained_variance(returns / 2, returns, mask) == pytest.approx(0.75)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.full((1, 4), 2.0), mask) == 0.0  # nothing to explain


def test_a_lesson_says_how_well_the_critic_foresaw_it():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    returns = torch.tensor([[2.0, 2.0, 4.0], [4.0, 0.0, 0.0]])  # variance 1; less the values 1, 0, 1, 0: variance 1/4
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    lesson = CriticLesson(Sequences(torch.zeros(2, 4), torch.ones(2, 4).bool(), mask), values, returns)
    assert lesson.metrics() == {"val/explained_var": pytest.approx(0.75)}

"""Rewards per token and generalised advantage estimation, against sums written out in float64."""

import numpy as np
import pytest
import torch

from rlhf.advantages import gae, kl_penalised_rewards


def reference_gae(rewards, values, mask, gamma, lam, final_values=None):
    """The double sum of Schulman et al. 2015, eq. 16, over the deltas of each response: O(R^2)."""
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for i in range(len(rewards)):
        length = int(mask[i].sum())
        v = [*values[i, :length], 0.0 if final_values is None else final_values[i]]
        delta = [rewards[i, t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            advantages[i, t] = sum((gamma * lam) ** k * delta[t + k] for k in range(length - t))
            returns[i, t] = advantages[i, t] + v[t]
    return advantages, returns


def random_rollout(seed, shape=(7, 12)):
    """Rewards (zero on padding), values (anything on padding) and mask; float32 numbers in float64 arrays."""
    random = np.random.default_rng(seed)
    lengths = [1, shape[1], *random.integers(1, shape[1] + 1, size=shape[0] - 2)]
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    rewards, values = (random.normal(size=shape).astype(np.float32).astype(np.float64) for _ in range(2))
    return np.where(mask, rewards, 0), values, mask


def relative_error(found, expected):
    return np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.99, 0.9), (1.0, 1.0), (0.9, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gae_equals_the_double_sum(gamma, lam, dtype):
    rewards, values, mask = random_rollout(0)
    inputs = (torch.tensor(rewards, dtype=dtype), torch.tensor(values, dtype=dtype), torch.tensor(mask))
    for found, expected in zip(gae(*inputs, gamma, lam), reference_gae(rewards, values, mask, gamma, lam), strict=True):
        assert relative_error(found, expected) <= (1e-6 if dtype is torch.float32 else 1e-13)


def test_gae_with_lambda_one_is_discounted_return_minus_value():
    rewards, values, mask = random_rollout(1)
    advantages, returns = gae(torch.tensor(rewards), torch.tensor(values), torch.tensor(mask), 0.9, 1.0)
    for i, t in zip(*np.nonzero(mask), strict=True):
        discounted = sum(0.9 ** (k - t) * rewards[i, k] for k in range(t, int(mask[i].sum())))
        assert returns[i, t].item() == pytest.approx(discounted)
        assert advantages[i, t].item() == pytest.approx(discounted - values[i, t])


def test_gae_with_lambda_zero_is_the_one_step_error():
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 40.0]])
    advantages, _ = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.5, 0.0)
    assert advantages.tolist() == [[1 + 0.5 * 20 - 10, 2 + 0.5 * 40 - 20, 3 - 40]]


def test_gae_by_hand():
    # deltas 0 + 2 - 1 = 1 and 4 - 2 = 2; A_1 = 2, A_0 = 1 + 0.5 * 2 = 2
    advantages, returns = gae(
        torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), 1.0, 0.5
    )
    assert advantages.tolist() == [[2.0, 2.0]]
    assert returns.tolist() == [[3.0, 4.0]]


def test_the_value_after_the_last_token_is_zero_whatever_the_critic_says_of_padding():
    mask = torch.tensor([[True, True, False]])
    for padding in (0.0, 1e6):
        values = torch.tensor([[1.0, 2.0, padding]])
        advantages, returns = gae(torch.tensor([[0.0, 5.0, 0.0]]), values, mask, 1.0, 1.0)
        assert advantages.tolist() == [[4.0, 3.0, 0.0]]
        assert returns.tolist() == [[5.0, 5.0, 0.0]]


def test_a_cut_response_goes_on_from_the_critics_value_after_its_last_token():
    rewards, values, mask = random_rollout(3)
    final_values = np.random.default_rng(4).normal(size=len(rewards))
    inputs = (torch.tensor(rewards), torch.tensor(values), torch.tensor(mask))
    found = gae(*inputs, 0.99, 0.9, torch.tensor(final_values))
    for x, y in zip(found, reference_gae(rewards, values, mask, 0.99, 0.9, final_values), strict=True):
        assert relative_error(x, y) <= 1e-13


def test_bootstrapping_by_hand():
    # cut: deltas 0 + 2 - 1 = 1 and 4 + 6 - 2 = 8; ended: 4 - 1 = 3
    mask = torch.tensor([[True, True], [True, False]])
    rewards, values = torch.tensor([[0.0, 4.0], [4.0, 0.0]]), torch.tensor([[1.0, 2.0], [1.0, 9.0]])
    advantages, returns = gae(rewards, values, mask, 1.0, 0.5, torch.tensor([6.0, 0.0]))
    assert advantages.tolist() == [[5.0, 8.0], [3.0, 0.0]]
    assert returns.tolist() == [[6.0, 10.0], [4.0, 0.0]]


def test_extra_padding_changes_no_advantage():
    rewards, values, mask = (torch.tensor(x) for x in random_rollout(2))
    narrow = gae(rewards, values, mask, 0.99, 0.95)
    wide = gae(*(torch.nn.functional.pad(x, (0, 7)) for x in (rewards, values, mask)), 0.99, 0.95)
    for x, y in zip(wide, narrow, strict=True):
        assert torch.equal(x[:, :12], y)
        assert (x[:, 12:] == 0).all()


def score_on(mask):
    """The rewards of a response whose policy has not moved, as a list: only the score is left."""
    mask = torch.tensor([mask])
    zeros = torch.zeros(mask.shape)
    return kl_penalised_rewards(torch.tensor([7.0]), zeros, zeros, mask, 0.1)[0].tolist()


def test_score_is_added_to_the_last_response_token():
    assert score_on([True, False, False]) == [7.0, 0.0, 0.0]  # EOS came first
    assert score_on([True, True, False]) == [0.0, 7.0, 0.0]  # EOS in the middle
    assert score_on([True, True, True]) == [0.0, 0.0, 7.0]  # no EOS, or EOS as the last token


def test_each_token_pays_for_its_kl_and_the_last_one_gets_the_score():
    logprobs = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]])
    ref_logprobs = torch.tensor([[-3.0, -1.0, 0.0], [-2.0, -4.0, -1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = kl_penalised_rewards(torch.tensor([10.0, -10.0]), logprobs, ref_logprobs, mask, 0.5)
    assert rewards.tolist() == [[-1.0, 0.5 + 10, 0.0], [-0.5, -1.5, -10.0]]

"""Arithmetic on masked tensors, against numbers by hand and float64 NumPy."""

import math

import numpy as np
import pytest
import torch

from rlhf.ops import entropy, masked_mean, masked_var, position_ids, token_logprobs, whiten


def relative_error(found, expected):
    """Of a whole array, by its norm: single elements near zero lose digits to cancellation in any float32 sum."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def random_masked(seed, shape=(6, 11)):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, shape[1] + 1, size=shape[0])
    return random.normal(3.0, 2.0, size=shape), np.arange(shape[1]) < lengths[:, None]


def test_token_logprob_is_the_log_of_the_softmax_at_the_token():
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0]]])  # [1, 2, 2]
    logprobs = token_logprobs(logits, torch.tensor([[1, 1]]))
    assert logprobs.tolist() == [[pytest.approx(math.log(3 / 4)), pytest.approx(math.log(1 / 5))]]


def test_token_logprobs_stay_finite_where_exp_would_overflow():
    logits = torch.tensor([[[1000.0, 0.0]]])
    assert token_logprobs(logits, torch.tensor([[0]])).item() == 0.0
    assert token_logprobs(logits, torch.tensor([[1]])).item() == -1000.0


def test_entropy_is_log_v_when_all_tokens_are_alike_and_zero_when_one_is_sure():
    logits = torch.tensor([[[5.0, 5.0, 5.0, 5.0], [200.0, 0.0, 0.0, 0.0]]])
    assert entropy(logits).tolist() == [[pytest.approx(math.log(4)), 0.0]]


def test_masked_mean_leaves_out_what_the_mask_leaves_out_even_nan():
    x = torch.tensor([[1.0, 3.0, math.nan], [5.0, math.inf, -math.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == 3.0


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.tensor([[math.nan]]), torch.tensor([[False]])).item() == 0.0


def test_masked_variance_is_that_of_the_population():
    x = torch.tensor([[1.0, 3.0, 99.0], [5.0, 7.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    assert masked_var(x, mask).item() == 5.0  # deviations -3, -1, 1, 3 from the mean 4


def test_whitening_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 77.0]])
    mask = torch.tensor([[True, True], [True, False]])
    step = math.sqrt(3 / 2)  # 1, 2, 3 have the mean 2 and the variance 2/3
    assert torch.allclose(whiten(x, mask), torch.tensor([[-step, 0.0], [step, 0.0]]))


@pytest.mark.parametrize("seed", range(3))
def test_whitening_equals_a_float64_reference(seed):
    x, mask = random_masked(seed)
    expected = np.where(mask, (x - x[mask].mean()) / x[mask].std(), 0)
    found = whiten(torch.tensor(x, dtype=torch.float32), torch.tensor(mask))
    assert relative_error(found, expected) <= 1e-6


def test_whitening_gives_mean_zero_and_standard_deviation_one_over_true_positions_only():
    x, mask = random_masked(4)
    white = whiten(torch.tensor(x), torch.tensor(mask)).numpy()
    assert white[mask].mean() == pytest.approx(0, abs=1e-7)
    assert white[mask].std() == pytest.approx(1, abs=1e-7)
    assert (white[~mask] == 0).all()


def test_whitening_takes_no_notice_of_padding():
    x, mask = (torch.tensor(part) for part in random_masked(5))
    wider_x = torch.nn.functional.pad(x, (0, 7), value=1e6)
    wider_mask = torch.nn.functional.pad(mask, (0, 7))
    assert torch.allclose(whiten(wider_x, wider_mask)[:, :11], whiten(x, mask), rtol=1e-12)


def test_whitening_equal_numbers_gives_zeros():
    assert whiten(torch.full((2, 3), 4.0), torch.ones(2, 3, dtype=torch.bool)).abs().max() == 0


def test_positions_count_real_tokens_from_zero_whatever_the_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, 3, 4, 5]]

"""The two losses of PPO, against float64 references in NumPy that share no code with them."""

import math

import numpy as np
import pytest
import torch

from rlhf.losses import policy_loss, value_loss

TRUE = torch.ones(1, 1, dtype=torch.bool)
POLICY_OPTIONS = [
    {"clip_range": 0.2},
    {"clip_range": 0.2, "clip_range_high": 0.28},
    {"clip_range": 0.1, "dual_clip": 1.5},
    {"clip_range": 0.2, "clip_range_high": 0.4, "dual_clip": 3.0},
]


def reference_policy_loss(new, old, advantages, mask, clip_range, clip_range_high=None, dual_clip=None):
    """Token by token, as the papers write it: the objective is the lesser of two, the loss its negative."""
    high, objectives, counted = clip_range_high or clip_range, [], []
    for i, j in zip(*np.nonzero(mask), strict=True):
        ratio, advantage = math.exp(new[i, j] - old[i, j]), advantages[i, j]
        bounded = min(max(ratio, 1 - clip_range), 1 + high)
        objective = min(ratio * advantage, bounded * advantage)
        counted.append(bounded * advantage < ratio * advantage)
        if dual_clip is not None and advantage < 0:
            objective = max(objective, dual_clip * advantage)
        objectives.append(objective)
    return -sum(objectives) / len(objectives), sum(counted) / len(counted)


def reference_value_loss(values, old_values, returns, mask, clip_range):
    errors, counted = [], []
    for i, j in zip(*np.nonzero(mask), strict=True):
        value, old, target = values[i, j], old_values[i, j], returns[i, j]
        bounded = old + min(max(value - old, -clip_range), clip_range)
        errors.append(0.5 * max((value - target) ** 2, (bounded - target) ** 2))
        counted.append((bounded - target) ** 2 > (value - target) ** 2)
    return sum(errors) / len(errors), sum(counted) / len(counted)


def random_tokens(seed, num_tensors=3, shape=(5, 9)):
    """float32 values as arrays of float64, and a mask of right-padded rows."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, shape[1] + 1, size=shape[0])
    # Not around 0: the mean of both signs would lose to cancellation the digits that are compared.
    arrays = [random.normal(0.3, 0.6, size=shape).astype(np.float32).astype(np.float64) for _ in range(num_tensors)]
    return [*arrays, np.arange(shape[1]) < lengths[:, None]]


def as_float32(arrays):
    return [torch.tensor(x, dtype=torch.float32) for x in arrays[:-1]] + [torch.tensor(arrays[-1])]


@pytest.mark.parametrize("options", POLICY_OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_policy_loss_equals_a_float64_reference(seed, options):
    tokens = random_tokens(seed)
    expected, expected_fraction = reference_policy_loss(*tokens, **options)
    loss, clip_fraction = policy_loss(*as_float32(tokens), **options)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert clip_fraction.item() == pytest.approx(expected_fraction, rel=1e-6)


@pytest.mark.parametrize("clip_range", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_value_loss_equals_a_float64_reference(seed, clip_range):
    tokens = random_tokens(seed)
    expected, expected_fraction = reference_value_loss(*tokens, clip_range)
    loss, clip_fraction = value_loss(*as_float32(tokens), clip_range)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert clip_fraction.item() == pytest.approx(expected_fraction, rel=1e-6)


def slope(ratio, advantage, **options):
    """d loss / d logprob of one token whose probability grew by the ratio."""
    logprob = torch.tensor([[math.log(ratio)]], requires_grad=True)
    policy_loss(logprob, torch.zeros(1, 1), torch.tensor([[advantage]]), TRUE, **options)[0].backward()
    return logprob.grad.item()


def test_at_ratio_one_the_gradient_is_that_of_the_plain_policy_gradient():
    assert slope(1.0, 2.0, clip_range=0.2) == pytest.approx(-2.0)
    assert slope(1.0, -2.0, clip_range=0.2) == pytest.approx(2.0)


def test_the_clip_stops_the_gradient_only_where_going_on_would_improve_the_objective():
    assert slope(1.3, 1.0, clip_range=0.2) == 0.0  # a good token, already likelier by more than the clip
    assert slope(0.7, -1.0, clip_range=0.2) == 0.0  # a bad token, already rarer
    assert slope(0.7, 1.0, clip_range=0.2) == pytest.approx(-0.7)  # a good token that became rarer comes back
    assert slope(1.3, -1.0, clip_range=0.2) == pytest.approx(1.3)


def test_the_higher_upper_clip_lets_good_tokens_rise_further():
    assert slope(1.25, 1.0, clip_range=0.2, clip_range_high=0.28) == pytest.approx(-1.25)
    assert slope(1.30, 1.0, clip_range=0.2, clip_range_high=0.28) == 0.0
    assert slope(0.79, -1.0, clip_range=0.2, clip_range_high=0.28) == 0.0  # the lower bound is as it was


def test_the_dual_clip_bounds_the_loss_of_a_bad_token_that_became_much_likelier():
    def loss(dual_clip):
        return policy_loss(
            torch.tensor([[math.log(10.0)]]), torch.zeros(1, 1), torch.tensor([[-2.0]]), TRUE, 0.2, None, dual_clip
        )[0].item()

    assert loss(None) == pytest.approx(20.0)
    assert loss(3.0) == pytest.approx(6.0)
    assert slope(10.0, -2.0, clip_range=0.2, dual_clip=3.0) == 0.0
    assert slope(10.0, 2.0, clip_range=0.2, dual_clip=3.0) == slope(10.0, 2.0, clip_range=0.2)


def test_policy_loss_before_the_first_update_is_minus_the_mean_advantage():
    advantages = torch.tensor([[1.0, 2.0, 100.0]])
    mask = torch.tensor([[True, True, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]])
    loss, clip_fraction = policy_loss(logprobs, logprobs, advantages, mask, 0.2)
    assert (loss.item(), clip_fraction.item()) == (-1.5, 0.0)


def test_value_loss_by_hand():
    # one value moved 0.5 away from its rollout value 0 towards the return 1: clipped to 0.2, the greater error counts
    loss, clip_fraction = value_loss(torch.tensor([[0.5]]), torch.zeros(1, 1), torch.ones(1, 1), TRUE, 0.2)
    assert loss.item() == pytest.approx(0.5 * 0.8**2)
    assert clip_fraction.item() == 1.0


def test_the_value_clip_stops_the_gradient_of_a_value_that_moved_far_enough():
    def value_slope(value):
        x = torch.tensor([[value]], requires_grad=True)
        value_loss(x, torch.zeros(1, 1), torch.ones(1, 1), TRUE, 0.2)[0].backward()
        return x.grad.item()

    assert value_slope(0.5) == 0.0
    assert value_slope(0.1) == pytest.approx(0.1 - 1.0)
    assert value_slope(-0.5) == pytest.approx(-0.5 - 1.0)  # it moved the wrong way and may come back


@pytest.mark.parametrize("loss_of", [lambda *x: policy_loss(*x, 0.2, 0.3, 3.0), lambda *x: value_loss(*x, 0.2)])
def test_extra_padding_changes_no_loss_and_no_gradient(loss_of):
    new, *others, mask = (torch.tensor(x) for x in random_tokens(9))
    found = []
    for width, filler in ((0, 0.0), (7, 1e4)):
        x = torch.nn.functional.pad(new, (0, width), value=filler).requires_grad_()
        rest = [torch.nn.functional.pad(other, (0, width), value=-filler) for other in others]
        loss, fraction = loss_of(x, *rest, torch.nn.functional.pad(mask, (0, width)))
        loss.backward()
        assert (x.grad[:, new.shape[1] :] == 0).all()
        found.append((loss.item(), fraction.item(), x.grad[:, : new.shape[1]]))
    (loss, fraction, gradient), (wide_loss, wide_fraction, wide_gradient) = found
    assert (wide_loss, wide_fraction) == (pytest.approx(loss, rel=1e-12), fraction)
    assert torch.allclose(wide_gradient, gradient, rtol=1e-12, atol=0)


def test_logprobs_of_padding_may_be_anything_and_get_no_gradient():
    logprobs = torch.tensor([[-1.0, math.nan, -math.inf]], requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    loss, _ = policy_loss(logprobs, torch.tensor([[-1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]), mask, 0.2)
    loss.backward()
    assert loss.item() == -1.0
    assert logprobs.grad.tolist() == [[-1.0, 0.0, 0.0]]

"""Estimators of KL and the two controllers of its price."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.kl import AdaptiveKL, FixedKL, k1, k2, k3, token_kl

logprobs = st.floats(min_value=-30, max_value=0)


def test_the_three_estimators_by_hand():
    # a token of probability 1/2 under the policy and 1/4 under the reference
    pair = torch.tensor(math.log(1 / 2)), torch.tensor(math.log(1 / 4))
    assert k1(*pair).item() == token_kl(*pair).item() == pytest.approx(math.log(2))
    assert k2(*pair).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(*pair).item() == pytest.approx(1 / 2 - 1 + math.log(2))


def test_k1_and_k3_average_to_the_kl_over_the_whole_distribution():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    exact = 0.7 * math.log(0.7 / 0.3) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.4)
    for estimator in (k1, k3):
        mean = (policy * estimator(policy.log(), reference.log())).sum().item()
        assert mean == pytest.approx(exact, rel=1e-6)


@given(logprobs, logprobs)
def test_k2_and_k3_are_never_negative(logprob, ref_logprob):
    pair = torch.tensor(logprob, dtype=torch.float64), torch.tensor(ref_logprob, dtype=torch.float64)
    assert k2(*pair) >= 0
    assert k3(*pair) >= -1e-15


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_no_estimator_finds_a_distance_between_equals(estimator):
    assert estimator(torch.tensor([-2.0]), torch.tensor([-2.0])).item() == 0.0


def coef_after(mean_kl):
    kl = AdaptiveKL(0.2, target=6.0, horizon=1000)
    kl.update(mean_kl, num_responses=50)
    return kl.coef


def test_adaptive_coefficient_by_hand():
    assert coef_after(6.0) == 0.2
    assert coef_after(6.6) == pytest.approx(0.2 * (1 + 0.1 * 50 / 1000))  # 10 % over the target
    assert coef_after(5.4) == pytest.approx(0.2 * (1 - 0.1 * 50 / 1000))
    assert coef_after(60.0) == pytest.approx(0.2 * (1 + 0.2 * 50 / 1000))  # the error is clipped at 20 %
    assert coef_after(0.0) == pytest.approx(0.2 * (1 - 0.2 * 50 / 1000))


def test_adaptive_coefficient_compounds_over_updates():
    kl = AdaptiveKL(1.0, target=1.0, horizon=10)
    for _ in range(3):
        kl.update(2.0, num_responses=5)
    assert kl.coef == pytest.approx(1.1**3)


def test_fixed_coefficient_stays():
    kl = FixedKL(0.05)
    kl.update(1000.0, num_responses=64)
    assert kl.coef == 0.05

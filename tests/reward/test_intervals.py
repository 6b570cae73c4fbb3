import numpy as np
import pytest
from scipy.stats import binomtest

from reward.report.intervals import mean_interval, percentile_interval, wilson_interval


def test_percentile_interval_leaves_out_a_fortieth_on_either_side():
    assert percentile_interval(list(range(41))) == {"low": 1.0, "high": 39.0}  # 0.025 and 0.975 of the way from 0 to 40


@pytest.mark.parametrize(("right", "num"), [(0, 1), (3, 3), (7, 20), (150, 200)])
def test_wilson_interval_equals_scipys(right, num):
    low, high = binomtest(right, num).proportion_ci(method="wilson")

    assert wilson_interval(right / num, num) == pytest.approx({"low": low, "high": high})


@pytest.mark.slow
def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(size=60), num_bootstrap=200, seed=i) for i in range(200)]

    covered = sum(interval["low"] <= 0 <= interval["high"] for interval in intervals)

    assert 180 <= covered <= 197  # 190 expected; binomial standard deviation 3


def test_copies_of_an_answer_make_the_interval_no_narrower():
    values, prompts = [0.0, 1.0, 1.0, 0.5, 0.0], list("abcde")

    once = mean_interval(values, num_bootstrap=300, seed=0, groups=prompts)
    thrice = mean_interval(values * 3, num_bootstrap=300, seed=0, groups=prompts * 3)

    assert thrice == pytest.approx(once)


def test_same_seed_same_interval():
    assert mean_interval([1.0, 2.0, 4.0], 50, seed=3) == mean_interval([1.0, 2.0, 4.0], 50, seed=3)

"""What happens to scores between the reward model and the rewards."""

import math

import pytest
import torch

from rlhf.errors import NumericsError
from rlhf.ppo.scores import RunningStd, ScoreShaping, check_scores

ALL_ENDED = torch.ones(2, dtype=torch.bool)


def shaped(shaping, *raw, terminated=ALL_ENDED):
    return shaping(torch.tensor(raw), terminated).tolist()


def test_scores_are_left_alone_unless_an_option_asks():
    shaping = ScoreShaping(running_norm=False, clip=None, missing_eos_penalty=0.0)
    assert shaped(shaping, 300.0, -2.5, terminated=torch.tensor([True, False])) == [300.0, -2.5]


def test_scores_are_clipped_on_both_sides():
    assert shaped(ScoreShaping(False, 2.0, 0.0), 5.0, -7.0) == [2.0, -2.0]
    assert shaped(ScoreShaping(False, 2.0, 0.0), 1.5, -1.5) == [1.5, -1.5]


def test_running_normalisation_divides_by_the_standard_deviation_of_all_scores_so_far():
    shaping = ScoreShaping(running_norm=True, clip=None, missing_eos_penalty=0.0)
    assert shaped(shaping, 1.0, 3.0) == [1.0, 3.0]  # 1 and 3 deviate by 1
    assert shaped(shaping, 5.0, 7.0) == pytest.approx([5 / math.sqrt(5), 7 / math.sqrt(5)])  # 1, 3, 5, 7: variance 5


def test_running_normalisation_leaves_scores_that_were_all_the_same():
    assert shaped(ScoreShaping(True, None, 0.0), 3.0, 3.0) == [3.0, 3.0]


def test_running_standard_deviation_does_not_depend_on_the_batches_and_stands_a_large_offset():
    numbers = 1e6 + torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = RunningStd()
    for part in numbers.split([1, 9, 50]):
        moments.update(part)
    mean = sum(numbers.tolist()) / 60
    assert moments.std == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in numbers.tolist()) / 60), rel=1e-9)


def test_a_response_without_eos_pays_the_penalty():
    shaping = ScoreShaping(False, None, missing_eos_penalty=1.5)
    assert shaped(shaping, 4.0, 4.0, terminated=torch.tensor([True, False])) == [4.0, 2.5]


def test_scores_are_normalised_then_clipped_then_pay_the_penalty():
    shaping = ScoreShaping(running_norm=True, clip=1.0, missing_eos_penalty=2.0)
    # 2 and 6 deviate by 2: divided 1 and 3, clipped 1 and 1
    assert shaped(shaping, 2.0, 6.0, terminated=torch.tensor([True, False])) == [1.0, -1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_stops_the_run_and_names_the_response(bad):
    scores = torch.tensor([1.0, bad, 2.0, bad])
    with pytest.raises(NumericsError) as error:
        check_scores(scores, ["fine", "the bad one", "fine", "x"], "step 12")
    message = str(error.value)
    assert message.startswith("step 12: the reward of 2 of 4 responses is not finite")
    assert "response 1" in message and "'the bad one'" in message and str(bad) in message


def test_finite_scores_pass():
    check_scores(torch.tensor([0.0, -1e30, 1e30]), ["a", "b", "c"], "step 0")

"""The report card on cases that can be worked out by hand."""

import json
import math

import numpy as np
import pytest

from reward.report.card import Judged, calibration, lines, report_card, votes_by_pair
from rlhf.errors import NumericsError


def judged(scores, ranks, key="a", annotator=None, lengths=None, responses=None):
    names = responses or [f"answer {i}" for i in range(len(scores))]
    return Judged(scores, ranks, lengths or [1] * len(scores), names, key, annotator)


def card_of(*rankings, **options):
    return report_card(rankings, **{"num_bootstrap": 200, **options})


# Prompt a: three pairs, all right. Prompt b: one pair, wrong.
TWO_PROMPTS = (judged([3.0, 2.0, 1.0], [1, 2, 3], "a"), judged([0.0, 1.0], [1, 2], "b"))


def test_pair_accuracy_counts_pairs_and_by_prompt_counts_prompts():
    card = card_of(*TWO_PROMPTS)
    assert card["num_pairs"] == 4
    assert card["pair_accuracy"]["value"] == pytest.approx(3 / 4)
    assert card["pair_accuracy_by_prompt"]["value"] == pytest.approx(1 / 2)


def test_interval_resamples_whole_prompts():
    # Drawn twice of two: a a -> 1, a b -> 3/4, b b -> 0, so the middle 95 % reach from 0 to 1.
    figure = card_of(*TWO_PROMPTS)["pair_accuracy"]
    assert (figure["low"], figure["high"]) == (0.0, 1.0)


def test_interval_of_many_prompts_is_that_of_a_share():
    rankings = [judged([float(n % 4 != 0), 0.5], [1, 2], str(n)) for n in range(400)]
    figure = card_of(*rankings, num_bootstrap=2000)["pair_accuracy"]
    margin = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert figure["low"] == pytest.approx(0.75 - margin, abs=0.006)
    assert figure["high"] == pytest.approx(0.75 + margin, abs=0.006)


def test_same_seed_gives_the_same_card():
    rankings = [judged([float(n % 3), 1.0], [1, 2], str(n)) for n in range(40)]
    assert card_of(*rankings, seed=7) == card_of(*rankings, seed=7)


def test_a_single_prompt_has_no_interval():
    figure = card_of(TWO_PROMPTS[0])["pair_accuracy"]
    assert figure == {"value": 1.0, "low": None, "high": None}


def test_a_tie_of_the_model_is_half_right():
    assert card_of(judged([1.0, 1.0 + 1e-7], [1, 2]))["pair_accuracy"]["value"] == 0.5


def test_tied_and_unranked_answers_make_no_pair():
    card = card_of(judged([3.0, 2.0, 1.0, 9.0], [1, 1, 2, None]))
    assert (card["num_pairs"], card["num_tied_pairs"]) == (2, 1)
    assert card["pair_accuracy"]["value"] == 1.0


def test_rank_gap_is_in_places_whatever_numbers_the_ranking_uses():
    card = card_of(judged([4.0, 1.0, 3.0, 2.0], [10, 20, 20, 70]))
    # places 1 2 2 3; one apart: 4>1, 4>3 right, 1>2 wrong, 3>2 right; two apart: 4>2 right
    assert card["by_rank_gap"] == [
        {"gap": 1, "value": 0.75, "num_pairs": 4},
        {"gap": 2, "value": 1.0, "num_pairs": 1},
    ]


def test_accuracy_is_split_by_whether_the_better_answer_is_the_longer_one():
    card = card_of(judged([3.0, 2.0, 1.0], [1, 3, 2], lengths=[5, 9, 5]))
    # better - worse: 0>1 right (5 against 9), 0>2 right (5 against 5), 2>1 wrong (5 against 9)
    assert card["by_length"] == {
        "better_longer": {"value": None, "num_pairs": 0},
        "better_shorter": {"value": 0.5, "num_pairs": 2},
        "same_length": {"value": 1.0, "num_pairs": 1},
    }


def test_length_baselines_choose_by_length_alone():
    baselines = card_of(judged([0.0] * 3, [1, 2, 3], lengths=[9, 5, 5]))["baselines"]
    assert baselines["length"]["value"] == pytest.approx(2.5 / 3)
    assert baselines["shorter"]["value"] == pytest.approx(0.5 / 3)
    assert baselines["random"] == 0.5


@pytest.mark.parametrize(
    ("scores", "ranks", "value", "chance"),
    [
        ([1.0, 3.0, 2.0], [2, 1, 3], 1.0, 1 / 3),
        ([3.0, 1.0, 2.0], [2, 1, 3], 0.0, 1 / 3),
        ([3.0, 1.0, 2.0], [1, 1, 2], 1.0, 2 / 3),  # any of the annotator's best will do
        ([3.0, 3.0, 2.0], [1, 2, 3], 0.5, 1 / 3),  # the model draws between two
        ([9.0, 1.0, 2.0], [None, 2, 1], 1.0, 1 / 2),
    ],
)
def test_top1_is_how_likely_the_first_choice_is_one_of_the_best(scores, ranks, value, chance):
    top1 = card_of(judged(scores, ranks))["top1"]
    assert (top1["value"], top1["random"], top1["num_rankings"]) == (value, pytest.approx(chance), 1)


def test_kendall_is_one_for_the_same_order_and_minus_one_for_the_opposite():
    card = card_of(judged([3.0, 2.0, 1.0], [1, 2, 3], "a"), judged([1.0, 2.0, 3.0], [1, 2, 3], "b"))
    assert card["kendall_tau_b"]["value"] == pytest.approx(0.0)
    assert card_of(judged([3.0, 2.0, 1.0], [1, 2, 3]))["kendall_tau_b"]["value"] == pytest.approx(1.0)


def test_kendall_corrects_for_ties():
    # 2 concordant, 0 discordant, 1 pair tied in the ranks: 2 / sqrt(3 * 2)
    tau = card_of(judged([3.0, 2.0, 1.0], [1, 2, 2]))["kendall_tau_b"]["value"]
    assert tau == pytest.approx(2 / math.sqrt(6))


def test_kendall_is_a_mean_over_prompts_that_skips_and_counts_rankings_without_order():
    right, wrong, tied = ([2.0, 1.0], [1, 2]), ([1.0, 2.0], [1, 2]), ([2.0, 1.0], [1, 1])
    card = card_of(judged(*right, "a"), judged(*right, "a"), judged(*wrong, "b"), judged(*tied, "c"))
    tau = card["kendall_tau_b"]
    assert tau["value"] == pytest.approx(0.0)
    assert (tau["num_prompts"], tau["num_all_tied"]) == (2, 1)


def test_a_model_that_ties_everything_has_no_correlation_and_chance_accuracy():
    card = card_of(judged([1.0] * 3, [1, 2, 3]))
    assert card["kendall_tau_b"]["value"] == 0.0
    assert card["pair_accuracy"]["value"] == 0.5
    assert card["top1"]["value"] == pytest.approx(card["top1"]["random"])


def test_scores_that_follow_length_correlate_with_it():
    card = card_of(judged([1.0, 2.0, 3.0], [1, 1, 2], "a", lengths=[3, 5, 50]), judged([1.0, 2.0], [1, 2], "b"))
    assert card["score_length_spearman"] == {"value": pytest.approx(1.0), "low": None, "high": None, "num_prompts": 1}


def test_calibration_of_one_pair_is_the_distance_of_sigma_z_from_the_label():
    card = card_of(judged([math.log(3), 0.0], [1, 2]))  # sigma(z) = 3/4, and the better answer is the one ahead
    assert card["brier"] == pytest.approx((1 - 0.75) ** 2)
    assert card["ece"] == pytest.approx(0.25)
    assert card["reliability"] == [{"predicted": pytest.approx(0.75), "observed": 1.0, "count": 1}]


def test_calibration_takes_the_share_of_votes_where_several_annotators_ranked_the_pair():
    # sigma(z) = 3/4 for the first answer; votes for it: 1, 1, 1, 0
    four = [judged([math.log(3), 0.0], ranks, annotator=str(n)) for n, ranks in enumerate([[1, 2]] * 3 + [[2, 1]])]
    card = card_of(*four)
    assert (card["brier"], card["ece"]) == (pytest.approx(0.0, abs=1e-15), pytest.approx(0.0, abs=1e-15))
    assert card["reliability"] == [{"predicted": pytest.approx(0.75), "observed": 0.75, "count": 1}]


def test_calibration_does_not_depend_on_the_order_in_which_answers_are_listed():
    forward = judged([math.log(3), 0.0, -1.0], [1, 3, 2], responses=["x", "y", "z"])
    backward = judged([-1.0, 0.0, math.log(3)], [2, 3, 1], responses=["z", "y", "x"])
    for figure in ("ece", "brier"):
        assert card_of(forward)[figure] == pytest.approx(card_of(backward)[figure], rel=1e-12)


def test_brier_of_a_model_that_is_confidently_wrong_is_the_worse_for_it():
    card = card_of(judged([0.0, math.log(3)], [1, 2]))  # sigma(z) = 1/4 for the better answer
    assert (card["brier"], card["ece"]) == (pytest.approx(0.75**2), pytest.approx(0.75))


def test_a_tie_of_the_annotator_is_half_a_vote():
    card = card_of(judged([math.log(3), 0.0], [1, 1]))
    assert (card["brier"], card["ece"]) == (pytest.approx(0.25**2), pytest.approx(0.25))


def test_brier_of_a_model_that_cannot_decide_is_a_quarter():
    card = card_of(judged([0.0, 0.0], [1, 2]))
    assert (card["brier"], card["ece"]) == (0.25, 0.0)


@pytest.mark.parametrize(("pairs", "bins"), [(300, [20] * 15), (30, [10] * 3), (19, [19]), (4, [4])])
def test_calibration_bins_hold_equally_many_pairs_and_not_too_few(pairs, bins):
    rankings = [judged([0.01 * n, 0.0], [1, 2], str(n)) for n in range(1, pairs + 1)]
    assert [b["count"] for b in card_of(*rankings)["reliability"]] == bins


def test_a_calibrated_model_has_a_small_calibration_error_and_an_overconfident_one_has_not():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.5, size=6000)
    first_wins = rng.random(6000) < 1 / (1 + np.exp(-z))
    ranks = [[1, 2] if wins else [2, 1] for wins in first_wins]
    honest, loud = (
        calibration(
            votes_by_pair([judged([s * x, 0.0], k, str(n)) for n, (x, k) in enumerate(zip(z, ranks, strict=True))])
        )
        for s in (1, 4)
    )
    assert honest["ece"] < 0.03
    assert loud["ece"] > 0.1


def test_human_agreement_is_over_twos_of_annotators_who_both_order_the_pair():
    rankings = [([1, 2, 3], "x"), ([1, 3, 2], "y"), ([2, 1, 1], "z")]
    card = card_of(*(judged([3.0, 2.0, 1.0], ranks, "a", who) for ranks, who in rankings))
    # 0 or 1: x and y for 0, z for 1, one of three twos agrees; 0 or 2 the same; 1 or 2: x against y, z ties
    assert card["human_agreement"] == {"value": pytest.approx(2 / 7), "low": None, "high": None, "num_pairs": 7}


def test_one_annotator_agrees_with_nobody():
    same_person = [judged([2.0, 1.0], [1, 2], annotator="x"), judged([2.0, 1.0], [1, 2], annotator="x")]
    assert card_of(*same_person)["human_agreement"]["num_pairs"] == 0
    assert card_of(*same_person)["human_agreement"]["value"] is None


@pytest.mark.parametrize("others", [(None, None), ("x", None)])
def test_rankings_of_which_nobody_knows_whose_they_are_agree_with_nobody(others):
    card = card_of(*(judged([2.0, 1.0], [1, 2], annotator=annotator) for annotator in others))
    assert card["human_agreement"] == {"value": None, "low": None, "high": None, "num_pairs": 0}
    assert card["num_pairs"] == 2  # they count for all else


def test_annotators_who_ranked_different_answers_to_a_prompt_are_not_compared():
    one = judged([2.0, 1.0], [1, 2], annotator="x", responses=["p", "q"])
    other = judged([2.0, 1.0], [2, 1], annotator="y", responses=["r", "s"])
    assert card_of(one, other)["human_agreement"]["num_pairs"] == 0


def test_answers_are_recognised_wherever_they_stand_in_a_ranking():
    one = judged([2.0, 1.0], [1, 2], annotator="x", responses=["p", "q"])
    other = judged([1.0, 2.0], [2, 1], annotator="y", responses=["q", "p"])
    assert card_of(one, other)["human_agreement"]["value"] == 1.0


def test_gold_rule_shows_what_the_noise_of_simulated_annotators_leaves():
    card = card_of(*TWO_PROMPTS, gold=[[5.0, 6.0, 4.0], [1.0, 0.0]])  # wrong on one of the three, right on the other
    assert card["gold_pair_accuracy"]["value"] == pytest.approx(3 / 4)
    assert card_of(*TWO_PROMPTS)["gold_pair_accuracy"] is None


@pytest.mark.parametrize(
    "rankings",
    [
        (),
        (judged([1.0, 2.0], [1, 1]),),
        (judged([1.0, 2.0], [None, 1]),),
        (judged([1.0], [1]), judged([], [])),
        TWO_PROMPTS,
    ],
)
def test_card_is_json_without_nan_and_can_be_printed_whatever_is_undefined(rankings):
    card = report_card(rankings, num_bootstrap=20, gold=[[0.0] * len(one.scores) for one in rankings])
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert len(lines(card)) > 10


def test_lines_show_figure_interval_and_what_it_is_over():
    printed = lines(card_of(*TWO_PROMPTS))
    assert printed[0] == "2 rankings of 2 prompts; pairs in order: 4, tied: 0"
    [line] = [line for line in printed if line.startswith("pair accuracy")]
    assert line.split() == ["pair", "accuracy", "75.0", "%", "0.0", "%", "to", "100.0", "%", "4", "pairs"]
    assert not any("gold rule" in line for line in printed)


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(NumericsError, match="scores an answer to prompt a with nan"):
        judged([1.0, math.nan], [1, 2])


def test_parts_of_different_size_are_refused():
    with pytest.raises(AssertionError, match=r"must all have K entries, not \[2, 3, 2, 2\]"):
        judged([1.0, 2.0], [1, 2, 3])

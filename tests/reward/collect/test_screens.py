"""Figures of one annotator, against scipy's tests and counts by hand."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from reward.collect.figures import screens
from reward.collect.figures.agreement import grid
from reward.collect.figures.screens import Shown


def shown(*ranks, seconds=30.0, unacceptable=()):
    """A ranking whose answers were shown as a, b, c, ... and got these ranks."""
    return list(ranks), len(unacceptable), seconds, False


def ranks(*rows):
    """[N, M] ranks of the answers a, b, c, ..."""
    return grid(map(list, rows))[1]


@pytest.mark.parametrize(("right", "num"), [(0, 5), (3, 10), (10, 10), (517, 730)])
def test_wilson_intervals_equal_scipy(right, num):
    expected = binomtest(right, num).proportion_ci(method="wilson")
    found = screens.wilson(right, num)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_gold_accuracy_counts_the_pairs_that_gold_orders_and_a_tie_as_half_right():
    gold = (1, 2, 2)  # orders a before b and a before c
    figure = screens.gold_accuracy(ranks(gold, gold), ranks((1, 1, 3), (3, 1, 2)))
    assert (figure["value"], figure["num"], figure["num_items"]) == ((0.5 + 1 + 0 + 0) / 4, 4, 2)


def test_self_consistency_is_the_share_of_pairs_ordered_the_same_again():
    figure = screens.self_consistency(ranks((1, 2, 3)), ranks((1, 3, 2)))
    assert (figure["value"], figure["num"]) == (2 / 3, 3)


def test_with_one_number_of_answers_the_position_test_is_the_binomial_test():
    """60 of 200 rankings of four answers put the first one best; chance is a quarter."""
    rankings = [shown(1, 2, 3, 4)] * 60 + [shown(2, 1, 3, 4)] * 140
    figure = screens.first_shown_best(Shown.of(rankings))
    assert figure["p"] == pytest.approx(binomtest(60, 200, 0.25).pvalue, abs=1e-12)
    assert (figure["value"], figure["expected"], figure["num"]) == (0.3, 0.25, 200)


def test_the_position_test_of_mixed_items_sums_over_all_ways_it_could_have_come_out():
    chances = [1 / 2, 1 / 3, 2 / 3, 1 / 4]
    likely = np.zeros(5)
    for came in itertools.product((0, 1), repeat=4):
        likely[sum(came)] += np.prod([p if hit else 1 - p for p, hit in zip(chances, came, strict=True)])
    for count in range(5):
        assert screens.two_sided_p(count, chances) == pytest.approx(likely[likely <= likely[count] * 1.0000001].sum())
        assert screens.upper_p(count, chances) == pytest.approx(likely[count:].sum())


def test_among_tied_best_the_first_shown_is_best_by_chance_as_often_as_they_are_many():
    figure = screens.first_shown_best(Shown.of([shown(1, 1, 3), shown(2, 1, 2)]))
    assert (figure["value"], figure["expected"]) == (0.5, (2 / 3 + 1 / 3) / 2)


def test_rankings_that_tie_all_say_nothing_about_position_or_order():
    assert screens.first_shown_best(Shown.of([shown(1, 1, 1)]))["num"] == 0
    nothing = screens.wilson(0, 0) | {"expected": None, "p": None}
    assert screens.displayed_order_kept(Shown.of([shown(1, 1, 1)])) == nothing


def test_keeping_the_displayed_order_is_judged_against_one_of_all_orders():
    figure = screens.displayed_order_kept(Shown.of([shown(1, 2, 3)] * 3 + [shown(1, 3, 2)]))
    assert (figure["value"], figure["expected"]) == (0.75, pytest.approx(1 / 6))
    assert figure["p"] == pytest.approx(binomtest(3, 4, 1 / 6, alternative="greater").pvalue)


def test_tied_answers_may_be_shown_in_either_order_and_still_keep_it():
    figure = screens.displayed_order_kept(Shown.of([shown(1, 2, 2)]))
    assert (figure["value"], figure["expected"]) == (1.0, pytest.approx(2 / 6))


def test_the_best_answer_s_position_is_shared_by_those_tied_for_best():
    rows = screens.best_by_position(Shown.of([shown(1, 1, 3), shown(1, 2)]))
    assert [(row["position"], row["value"], row["num"]) for row in rows] == [(1, 0.75, 2), (2, 0.25, 2), (3, 0.0, 1)]
    assert [row["expected"] for row in rows] == pytest.approx([(1 / 3 + 1 / 2) / 2] * 2 + [1 / 3])


def test_ties_are_counted_in_pairs_and_unacceptable_answers_in_answers():
    rankings = Shown.of([shown(1, 2, 2, 2, unacceptable="bcd"), shown(1, 2, None)])
    assert (screens.tied_pairs(rankings)["value"], screens.tied_pairs(rankings)["num"]) == (
        3 / 7,
        7,
    )
    assert screens.unacceptable_answers(rankings)["value"] == 3 / 7


def test_seconds_are_told_by_median_middle_half_and_histogram():
    figure = screens.seconds(Shown.of([shown(1, 2, seconds=s) for s in (4, 10, 20, 30, 1000)]))
    assert (figure["median"], figure["low"], figure["high"]) == (20, 10, 30)
    assert figure["histogram"] == [1, 0, 1, 2, 0, 0, 0, 1]


# -- reasons to look --


def two(pairs):
    """([N, M], [N, M]) of (ranks, other ranks)."""
    return ranks(*(one for one, _ in pairs)), ranks(*(other for _, other in pairs))


def figures(rankings, gold=(), again=(), num_skips=0):
    return {
        "gold": screens.gold_accuracy(*two(gold)),
        "self_consistency": screens.self_consistency(*two(again)),
        "first_shown_best": screens.first_shown_best(Shown.of(rankings)),
        "displayed_order_kept": screens.displayed_order_kept(Shown.of(rankings)),
        "seconds": screens.seconds(Shown.of(rankings)),
        "skips": screens.wilson(num_skips, num_skips + len(rankings)),
    }


def at_random(num, seconds=30.0, seed=0):
    """Rankings that have nothing to do with the order of display."""
    rng = np.random.default_rng(seed)
    return [shown(*map(int, rng.permutation(4) + 1), seconds=seconds) for _ in range(num)]


def test_nothing_about_an_ordinary_annotator_calls_for_a_look():
    gold = [((1, 2, 3), (1, 2, 3))] * 8
    assert screens.reasons_to_look(figures(at_random(100), gold, gold, num_skips=5), usual_seconds=30) == []


def test_each_screen_says_why_somebody_should_look():
    orders = ((1, 2, 3), (3, 2, 1))
    first_best = [shown(1, *map(int, np.random.default_rng(i).permutation([2, 3, 4]))) for i in range(40)]
    cases = {
        "orders 0 % of gold pairs right, at most 24 %": figures(at_random(20), gold=[orders] * 4),
        "orders 0 % of repeated pairs as before, at most 24 %": figures(at_random(20), again=[orders] * 4),
        "leaves the answers in the order shown in 100 %, by chance 4 %": figures([shown(1, 2, 3, 4)] * 20),
        "ranks the answer shown first best in 100 %, by chance 25 %": figures(first_best),
        "skips 60 % of what is handed out": figures(at_random(20), num_skips=30),
        "takes 8 s per item (median), less than 10 s": figures(at_random(20, seconds=8.0)),
    }
    for reason, its_figures in cases.items():
        assert reason in screens.reasons_to_look(its_figures, usual_seconds=30)


def test_a_few_rankings_are_no_reason_to_look():
    few = figures([shown(1, 2, 3, 4, seconds=2.0)], gold=[((1, 2), (2, 1))] * 2, num_skips=1)
    assert screens.reasons_to_look(few, usual_seconds=30) == []


def test_a_median_below_the_collection_s_least_seconds_calls_for_a_look():
    assert screens.reasons_to_look(figures(at_random(20, seconds=8.0)), usual_seconds=9, min_seconds=10)

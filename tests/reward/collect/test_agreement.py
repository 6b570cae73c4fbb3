"""Agreement between annotators, against scipy, the krippendorff package, published tables and pencil and paper."""

import itertools

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from reward.collect.figures import agreement as measures
from reward.collect.figures.agreement import Rankings, all_twos, coincidences, ordinal_alpha, place_values


def ranking(annotator, *ranks, item="item"):
    """ranks of the answers a, b, c, ..."""
    return item, annotator, dict(zip("abcdefghi", ranks, strict=False))


def agreement(rankings, **options):
    return measures.agreement(Rankings.of(rankings), **options)


def places(*rankings):
    """[N, K] of K answers."""
    return place_values(Rankings.of(rankings).ranks)[:, : len(rankings[0][2])]


def random_rankings(seed, num_items=40, num_answers=5, num_annotators=3, num_places=5, unranked=0.0):
    """Rankings with ties where there are fewer places than answers."""
    rng = np.random.default_rng(seed)
    for item, annotator in itertools.product(range(num_items), range(num_annotators)):
        ranks = (
            rng.permutation(num_answers) if num_places == num_answers else rng.integers(num_places, size=num_answers)
        )
        ranks = [None if rng.random() < unranked else int(rank) + 1 for rank in ranks]
        yield ranking(f"annotator {annotator}", *ranks, item=f"item {item:02}")


# -- pairs --


def test_pair_agreement_is_the_share_of_pairs_in_the_same_order():
    figure = agreement([ranking("ann", 1, 2, 3), ranking("bob", 1, 3, 2)])["pair_agreement"]  # only b, c differ
    assert (figure["value"], figure["num_pairs"]) == (2 / 3, 3)


def test_pairs_that_one_of_the_two_ties_are_left_out_of_pair_agreement():
    figure = agreement([ranking("ann", 1, 1, 3), ranking("bob", 1, 2, 3)])["pair_agreement"]
    assert (figure["value"], figure["num_pairs"]) == (1.0, 2)


def test_with_ties_a_tie_against_an_order_is_half_and_two_ties_are_whole():
    figure = agreement([ranking("ann", 1, 1, 3), ranking("bob", 1, 2, 3)])["pair_agreement_with_ties"]
    assert (figure["value"], figure["num_pairs"]) == ((0.5 + 1 + 1) / 3, 3)
    assert agreement([ranking("ann", 1, 1), ranking("bob", 1, 1)])["pair_agreement_with_ties"]["value"] == 1.0


def test_answers_that_one_of_the_two_did_not_rank_are_in_no_pair():
    assert agreement([ranking("ann", 1, 2, None), ranking("bob", 1, 2, 3)])["pair_agreement"]["num_pairs"] == 1


def test_every_two_of_an_item_s_annotators_are_compared():
    report = agreement([ranking(name, 1, 2) for name in ("ann", "bob", "cyd", "dan")])
    assert (report["num_twos"], report["num_items"], report["num_annotators"]) == (6, 1, 4)


def test_an_item_of_one_annotator_and_one_that_nobody_could_rank_say_nothing():
    lone, unrankable = ranking("ann", 1, 2, item="lone"), ranking("ann", None, None, item="bad")
    report = agreement([lone, unrankable, ranking("bob", None, None, item="bad")])
    assert (report["num_items"], report["pair_agreement"]["value"], report["kendall_tau_b"]["value"]) == (0, None, None)
    assert report["kendall_tau_b"]["num_all_tied"] == 0


def test_pair_agreement_is_given_for_each_number_of_answers():
    small = [ranking("ann", 1, 2, item="small"), ranking("bob", 2, 1, item="small")]
    by_size = agreement([*small, ranking("ann", 1, 2, 3), ranking("bob", 1, 2, 3)])["by_num_answers"]
    assert [(row["num_answers"], row["value"], row["num_pairs"]) for row in by_size] == [(2, 0.0, 1), (3, 1.0, 3)]


# -- Kendall's tau-b --


@pytest.mark.parametrize("unranked", [0.0, 0.2])
def test_tau_b_equals_scipy(unranked):
    rankings = list(random_rankings(1, num_places=4, unranked=unranked))
    expected = []
    for one, other in itertools.combinations(rankings, 2):
        (item, _, ranks), (other_item, _, other_ranks) = one, other
        both = [(ranks[a], other_ranks[a]) for a in ranks if ranks[a] and other_ranks[a]]
        if item == other_item and len(both) > 1:
            expected.append(kendalltau(*zip(*both, strict=True)).statistic)
    np.testing.assert_allclose(all_twos(Rankings.of(rankings)).tau_b, expected, atol=1e-12)


def test_rankings_that_tie_all_are_left_out_of_tau_and_counted():
    tied = [ranking("ann", 1, 1, item="tied"), ranking("bob", 1, 2, item="tied")]
    figure = agreement([*tied, ranking("ann", 1, 2), ranking("bob", 2, 1)])["kendall_tau_b"]
    assert (figure["value"], figure["num_twos"], figure["num_all_tied"]) == (-1.0, 1, 1)


def test_without_ties_tau_is_twice_the_pair_agreement_less_one():
    report = agreement(random_rankings(2))
    assert report["kendall_tau_b"]["value"] == pytest.approx(2 * report["pair_agreement"]["value"] - 1, abs=1e-12)


# -- Krippendorff's alpha --

PUBLISHED = [  # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, 12 units
    [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
    [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
]


def test_ordinal_alpha_is_the_published_value():
    (met,) = coincidences(np.zeros(4, int), np.array(PUBLISHED), np.arange(1, 6))
    assert ordinal_alpha(met) == pytest.approx(0.815, abs=5e-4)


@pytest.mark.parametrize(("num_places", "unranked"), [(5, 0.0), (3, 0.0), (4, 0.3)])
def test_ordinal_alpha_equals_the_krippendorff_package(num_places, unranked):
    package = pytest.importorskip("krippendorff", reason="pip install krippendorff")
    rankings = list(random_rankings(3, num_places=num_places, unranked=unranked))
    items = [list(them) for _, them in itertools.groupby(rankings, key=lambda one: one[0])]
    units = np.concatenate([places(*them) for them in items], axis=1)
    expected = package.alpha(units, level_of_measurement="ordinal")
    assert agreement(rankings, num_bootstrap=10)["krippendorff_alpha"]["value"] == pytest.approx(expected, abs=1e-12)


def test_without_ties_ordinal_alpha_of_many_items_is_the_mean_spearman_correlation():
    """Up to the correction for a finite sample: chance draws without replacement from the N values that there are."""
    rankings = list(random_rankings(4, num_annotators=2))
    rho = np.mean([spearmanr(*places(*rankings[i : i + 2])).statistic for i in range(0, len(rankings), 2)])
    num_values = 5 * len(rankings)
    expected = 1 - (num_values - 1) / num_values * (1 - rho)
    assert agreement(rankings)["krippendorff_alpha"]["value"] == pytest.approx(expected, abs=1e-12)


def test_full_agreement_is_alpha_one():
    assert agreement([ranking("ann", 1, 2, 3), ranking("bob", 1, 2, 3)])["krippendorff_alpha"]["value"] == 1.0


def test_alpha_is_undefined_and_no_error_where_all_ranks_are_equal():
    figure = agreement([ranking("ann", 1, 1), ranking("bob", 1, 1)])["krippendorff_alpha"]
    assert (figure["value"], figure["undefined"]) == (None, "all ranks are equal")


def test_tied_answers_stand_in_the_middle_of_their_places():
    assert places(ranking("ann", 1, 2, 2, 4)).tolist() == [[1, 2.5, 2.5, 4]]
    assert places(ranking("ann", 2, None, 2, 5))[0, [0, 2, 3]].tolist() == [1.5, 1.5, 3]


# -- intervals --


def test_intervals_hold_their_value_and_are_the_same_each_time():
    rankings = list(random_rankings(5, num_places=3))
    report, again = agreement(rankings, num_bootstrap=200), agreement(rankings, num_bootstrap=200)
    for name in ("pair_agreement", "pair_agreement_with_ties", "kendall_tau_b", "krippendorff_alpha"):
        assert report[name]["low"] < report[name]["value"] < report[name]["high"]
    assert report == again


def test_looking_at_them_in_parts_changes_no_figure(monkeypatch):
    rankings = list(random_rankings(6, num_places=3, unranked=0.1))
    whole = agreement(rankings, num_bootstrap=20)
    monkeypatch.setattr(measures, "CHUNK", 7)
    assert agreement(rankings, num_bootstrap=20) == whole


def test_many_annotators_of_few_items_do_not_narrow_the_interval():
    """Items are resampled whole: twelve people who agree on one item and are split on another are still two items."""
    easy = [ranking(str(i), 1, 2, item="easy") for i in range(12)]
    hard = [ranking(str(i), 1 + i % 2, 2 - i % 2, item="hard") for i in range(12)]
    figure = agreement([*easy, *hard])["pair_agreement"]
    assert (figure["low"], figure["high"]) == (pytest.approx(30 / 66), 1.0)  # one of the items drawn twice


def test_one_item_has_no_interval():
    report = agreement([ranking("ann", 1, 2, 3), ranking("bob", 1, 3, 2)])
    assert (report["krippendorff_alpha"]["low"], report["pair_agreement"]["low"]) == (None, None)


def test_nothing_to_compare_is_none_and_not_an_error():
    report = agreement([])
    assert report["krippendorff_alpha"]["value"] is report["pair_agreement"]["value"] is None

"""Win rates and Bradley-Terry strengths of a blind comparison, by hand and against other people's programs."""

import numpy as np
import pytest
from collect_world import add_annotator
from scipy.optimize import minimize
from written_rankings import add_comparison, add_item, rank

from reward.collect.cli.terminal import comparison_lines
from reward.collect.figures.comparison import (
    Judgement,
    bradley_terry,
    caveats,
    compare,
    comparison_names,
    comparison_report,
    sentence,
)
from reward.collect.refusals import NotFound
from reward.collect.store.tables import Annotation, Annotator, Item


def judged(item, prompt=None, **answers):
    """judged("item", a=(1, "sft"), b=(2, "ppo")): the rank of each answer and its policies."""
    ranks = {answer: rank for answer, (rank, *_) in answers.items()}
    return Judgement(item, prompt or item, ranks, {a: frozenset(policies) for a, (_, *policies) in answers.items()})


def judgements(wins, ties, losses):
    """ppo against sft."""
    outcomes = [(1, 2)] * wins + [(1, 1)] * ties + [(2, 1)] * losses
    return [judged(str(n), a=(ppo, "ppo"), b=(sft, "sft")) for n, (ppo, sft) in enumerate(outcomes)]


# -- win rates --


def test_a_tie_is_half_a_win():
    (pair,) = compare(judgements(wins=5, ties=2, losses=3))["pairs"]
    assert (pair["policy"], pair["other"], pair["value"]) == ("ppo", "sft", 0.6)
    assert (pair["wins"], pair["ties"], pair["losses"], pair["num_prompts"]) == (5, 2, 3, 10)


def test_the_interval_is_that_of_a_binomial_share():
    """64 of 100: the normal approximation gives 0.64 +- 1.96 * sqrt(0.64 * 0.36 / 100) = 0.546 to 0.734."""
    (pair,) = compare(judgements(wins=64, ties=0, losses=36))["pairs"]
    assert (pair["low"], pair["high"]) == (pytest.approx(0.546, abs=0.011), pytest.approx(0.734, abs=0.011))


def test_an_answer_that_two_policies_gave_is_a_tie_between_them():
    (pair,) = compare([judged("one", a=(1, "ppo", "sft"))])["pairs"]
    assert (pair["value"], pair["ties"]) == (0.5, 1)


def test_of_three_policies_each_two_are_compared_where_both_have_an_answer():
    three = judged("one", a=(1, "ppo"), b=(2, "hub", "sft"))
    two = judged("two", a=(1, "sft"), b=(2, "hub"))
    pairs = {(pair["policy"], pair["other"]): pair for pair in compare([three, two])["pairs"]}
    assert {two: (pair["value"], pair["num_items"]) for two, pair in pairs.items()} == {
        ("ppo", "sft"): (1.0, 1),
        ("ppo", "hub"): (1.0, 1),
        ("sft", "hub"): (0.75, 2),
    }


def test_several_answers_of_a_policy_are_compared_each_with_each():
    one = judged("one", a=(1, "ppo"), b=(2, "sft"), c=(3, "ppo"), d=(4, "sft"))
    assert compare([one])["pairs"][0]["value"] == 0.75


def test_several_rankings_of_an_item_count_as_one_item():
    twice = [judged("one", a=(1, "ppo"), b=(2, "sft")), judged("one", a=(1, "ppo"), b=(2, "sft"))]
    (pair,) = compare([*twice, judged("two", a=(2, "ppo"), b=(1, "sft"))])["pairs"]
    assert (pair["value"], pair["num_items"], pair["wins"] + pair["losses"]) == (0.5, 2, 3)


def test_answers_that_were_not_ranked_say_nothing():
    (pair,) = compare([judged("one", a=(1, "ppo"), b=(None, "sft"))])["pairs"]
    assert (pair["value"], pair["num_items"]) == (None, 0)


def test_items_of_one_prompt_are_resampled_together():
    """Two prompts of ten equal items each have the interval of two observations, not of twenty."""
    won = [judged(f"won {n}", "p", a=(1, "ppo"), b=(2, "sft")) for n in range(10)]
    lost = [judged(f"lost {n}", "q", a=(2, "ppo"), b=(1, "sft")) for n in range(10)]
    (pair,) = compare(won + lost)["pairs"]
    assert (pair["low"], pair["high"], pair["num_items"], pair["num_prompts"]) == (0.0, 1.0, 20, 2)


# -- strengths --


def random_wins(seed, num_policies=4):
    wins = np.random.default_rng(seed).integers(1, 40, size=(num_policies, num_policies)).astype(float)
    return wins * (1 - np.eye(num_policies))


def test_two_policies_differ_by_the_log_odds_of_a_win():
    strengths = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), prior=0)
    assert strengths[0] - strengths[1] == pytest.approx(np.log(3))


@pytest.mark.parametrize("seed", range(3))
def test_strengths_maximise_the_likelihood_as_scipy_finds_it(seed):
    wins = random_wins(seed)

    def loss(strengths):
        return (wins * np.logaddexp(0, strengths - strengths[:, None])).sum()

    expected = minimize(loss, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose(bradley_terry(wins, prior=0), expected - expected.mean(), atol=1e-5)


def test_strengths_equal_those_of_choix():
    choix = pytest.importorskip("choix", reason="pip install choix")
    wins = random_wins(3)
    games = [(i, j) for i in range(4) for j in range(4) for _ in range(int(wins[i, j]))]
    np.testing.assert_allclose(bradley_terry(wins, prior=0), choix.ilsr_pairwise(4, games), atol=1e-7)


def test_the_prior_is_a_tie_between_each_two():
    wins = random_wins(4)
    ties = 0.5 * (1 - np.eye(4))
    np.testing.assert_allclose(bradley_terry(wins, prior=1), bradley_terry(wins + ties, prior=0), atol=1e-9)


def test_strengths_stay_finite_where_one_never_loses_and_where_two_were_never_compared():
    unbeaten = bradley_terry(np.array([[0.0, 50.0], [0.0, 0.0]]))
    assert unbeaten[0] - unbeaten[1] == pytest.approx(np.log(50.5 / 0.5))  # half a win against 50 and a half
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[2, 3] = 1e4
    assert np.isfinite(bradley_terry(apart)).all()
    assert bradley_terry(apart).sum() == pytest.approx(0)


def test_many_sets_of_wins_at_once_give_what_each_gives_alone():
    several = np.stack([random_wins(seed) for seed in range(5)])
    np.testing.assert_allclose(bradley_terry(several), [bradley_terry(wins) for wins in several], atol=1e-9)


def test_the_interval_of_a_strength_is_that_of_resampled_prompts():
    """For two policies the strength is half the log odds, a monotone function of the win rate: so are its ends."""
    report = compare(judgements(wins=60, ties=0, losses=40))
    (pair,), best = report["pairs"], report["strengths"][0]
    for end in ("value", "low", "high"):
        wins = 100 * pair[end] + 0.5  # with the prior's half
        assert best[end] == pytest.approx(np.log(wins / (101 - wins)) / 2)


# -- words --


def test_the_result_reads_as_a_sentence():
    pair = {"policy": "ppo", "other": "sft", "value": 0.64, "low": 0.58, "high": 0.7, "num_prompts": 200}
    pair |= {"wins": 127, "ties": 1, "losses": 72, "num_ranked": 200}
    assert sentence(pair) == "ppo beats sft in 64 % (95 % 58-70) of 200 prompts: 127 wins, 1 tie, 72 losses"
    assert sentence(pair | {"value": 0.52, "low": 0.45}).endswith("72 losses; the interval includes 50 %")
    assert sentence(pair | {"low": None}).endswith("in 64 % of 200 prompts: 127 wins, 1 tie, 72 losses")


def test_ties_that_nobody_ranked_are_not_told_as_a_result():
    (pair,) = compare([judged(str(n), a=(1, "ppo", "sft")) for n in range(3)])["pairs"]
    assert sentence(pair) == "nobody has ranked ppo against sft yet"


def test_nothing_ranked_yet_is_no_error():
    assert compare([]) == {"policies": [], "pairs": [], "strengths": []}


# -- from the database --


@pytest.fixture
def compared(database):
    """Four prompts. Ann has ppo win two and sft one, Bob has sft win the first; on the last both gave one answer."""
    with database.write() as session:
        ann, bob = (add_annotator(session, name) for name in ("ann", "bob"))
        items = add_comparison(session, "ppo or sft", [("A0", "B0"), ("A1", "B1"), ("A2", "B2"), ("same", "same")])
        for item, place_of_ppo in zip(items, (1, 1, 2), strict=False):
            rank(session, item, ann, [3 - place_of_ppo, place_of_ppo])
        rank(session, items[0], bob, [1, 2])
    return database


def test_identical_answers_count_as_ties(compared):
    with compared.read() as session:
        report = comparison_report(session, "ppo or sft")
        assert comparison_names(session) == ["ppo or sft"]
    (pair,) = report["pairs"]
    assert (pair["value"], pair["wins"], pair["ties"], pair["losses"]) == ((0.5 + 1 + 0 + 0.5) / 4, 2, 1, 2)
    assert (report["num_items"], report["num_identical"], report["num_waiting"]) == (4, 1, 0)


def test_only_the_newest_revision_of_a_ranking_counts(compared):
    with compared.write() as session:
        ann = session.query(Annotator).filter_by(handle="ann").one()
        lost = next(item for item in session.query(Item) if ranks_of(session, item, ann) == [1, 2])
        rank(session, lost, ann, [2, 1])
    with compared.read() as session:
        (pair,) = comparison_report(session, "ppo or sft")["pairs"]
    assert (pair["policy"], pair["value"]) == ("ppo", (0.5 + 1 + 1 + 0.5) / 4)


def ranks_of(session, item, person):
    made = session.query(Annotation).filter_by(item_id=item.id, annotator_id=person.id).one_or_none()
    return made and [made.ranks[one] for one in item.response_ids]


def test_what_another_policy_says_later_changes_no_comparison_that_is_there(compared):
    with compared.read() as session:
        before = comparison_report(session, "ppo or sft")
    with compared.write() as session:
        add_item(session, 0, [("A0", "hub"), ("C0", "base")], comparison="hub or base")
    with compared.read() as session:
        assert comparison_report(session, "ppo or sft") == before
        assert comparison_report(session, "hub or base")["num_items"] == 1


def test_rankings_of_paused_people_are_left_out_and_counted(compared):
    with compared.write() as session:
        session.query(Annotator).filter_by(handle="bob").one().status = "paused"
    with compared.read() as session:
        report = comparison_report(session, "ppo or sft")
    (pair,) = report["pairs"]
    assert (pair["policy"], pair["value"], report["num_paused"]) == ("ppo", (1 + 1 + 0 + 0.5) / 4, 1)
    assert "1 rankings of paused annotators are left out" in caveats(report)
    assert comparison_lines(report)[1].startswith("  ppo beats sft in 62 %")


def test_an_unknown_comparison_is_refused_with_the_known_ones(compared):
    with (
        compared.read() as session,
        pytest.raises(NotFound, match="'other' has no items; comparisons here: ppo or sft"),
    ):
        comparison_report(session, "other")

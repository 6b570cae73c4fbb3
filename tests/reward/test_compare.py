import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from reward.report.compare import (
    Answers,
    compare_policies,
    distinct_n,
    pick_examples,
    read_curves,
    read_frontier,
    summarise_policy,
    win_rate,
)
from rlhf.errors import NumericsError

JUDGES = ("rule my_rules:short", "gold rule my_rules:kind")


def answers(scores, gold=None, name="ppo", **changes):
    n = len(scores)
    given = {
        "texts": [f"{name} answer {i}" for i in range(n)],
        "groups": [f"prompt {i}" for i in range(n)],
        "scores": scores,
        "kl": [0.0] * n,
        "lengths": [3] * n,
        "finished": [True] * n,
        "gold": gold,
    }
    return Answers(**given | changes)


def test_a_tie_counts_as_half_a_win():
    rate = win_rate([2.0, 3.0, 1.0, 0.0], [1.0, 2.0, 1.0, 1.0], num_bootstrap=10, seed=0)

    assert rate["value"] == 0.625  # (1 + 1 + 0.5 + 0) / 4
    assert (rate["wins"], rate["ties"], rate["losses"]) == (2, 1, 1)


def test_scores_that_differ_by_rounding_are_a_tie():
    assert win_rate([1.0 + 1e-7], [1.0], num_bootstrap=2, seed=0)["ties"] == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_what_one_policy_wins_the_other_loses(pairs):
    ours, theirs = zip(*pairs, strict=True)

    there = win_rate(ours, theirs, num_bootstrap=2, seed=0)
    back = win_rate(theirs, ours, num_bootstrap=2, seed=0)

    assert there["value"] + back["value"] == pytest.approx(1)
    assert there["wins"] == back["losses"]


def test_interval_of_a_win_rate_is_the_binomial_one():
    won = [1.0] * 160 + [0.0] * 40  # resampling 200 coins of which 160 show heads draws from Binomial(200, 0.8)
    exact = binom.ppf([0.025, 0.975], 200, 0.8) / 200

    rate = win_rate(won, [0.5] * 200, num_bootstrap=4000, seed=0)

    assert (rate["low"], rate["high"]) == pytest.approx(exact, abs=0.0051)


@pytest.mark.parametrize(("wins", "low", "high"), [(3, 0.438, 1.0), (0, 0.0, 0.562), (2, 0.208, 0.939)])
def test_three_prompts_leave_a_wide_interval_whatever_the_resampling_says(wins, low, high):
    won = [1.0] * wins + [0.0] * (3 - wins)  # Wilson's intervals for 3 trials, from a table

    rate = win_rate(won, [0.5] * 3, num_bootstrap=100, seed=0)

    assert (rate["low"], rate["high"]) == pytest.approx((low, high), abs=6e-4)


def test_several_answers_to_three_prompts_are_still_three_prompts():
    once = win_rate([1.0, 0.0, 1.0], [0.5] * 3, 100, 0, groups=list("abc"))
    fourfold = win_rate([1.0, 0.0, 1.0] * 4, [0.5] * 12, 100, 0, groups=list("abc") * 4)

    assert (fourfold["low"], fourfold["high"]) == pytest.approx((once["low"], once["high"]))


def test_distinct_n_counts_n_grams_within_responses():
    assert distinct_n(["a b a", "a b"], 1) == 2 / 5  # a, b of five words
    assert distinct_n(["a b a", "a b"], 2) == 2 / 3  # (a b), (b a) of three pairs; none across responses
    assert distinct_n([[7, 8, 7], [7, 8]], 2) == 2 / 3  # token ids likewise
    assert distinct_n(["one"], 2) is None  # no pair at all is not the worst repetition
    assert distinct_n([], 1) is None


def test_figures_of_a_policy_by_hand():
    policy = answers(
        [1.0, 3.0],
        gold=[0.0, 1.0],
        texts=["no no", "yes please"],
        kl=[2.0, 4.0],
        lengths=[2, 5],
        finished=[True, False],
    )
    figures = summarise_policy(policy, perplexity=7.5, num_bootstrap=50, seed=0)

    expected = {"score_mean": 2, "score_std": 1, "gold_mean": 0.5, "kl": 3, "length_mean": 3.5, "eos_rate": 0.5}
    expected |= {"distinct_1": 0.75, "distinct_2": 1, "perplexity": 7.5}
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["intervals"]["kl"]["low"] == 2 and figures["intervals"]["kl"]["high"] == 4
    assert figures["win_rate"] is None  # against nobody


def test_gold_rule_gives_the_headline_where_there_is_one():
    sft, ppo = answers([0.0, 0.0], gold=[1.0, 1.0], name="sft"), answers([1.0, 1.0], gold=[0.0, 2.0])

    judges = ("reward model", "gold rule my_rules:kind")
    figures = summarise_policy(ppo, None, 20, 0, baseline=sft, judges=judges)

    assert figures["win_rate"]["by"] == "gold rule my_rules:kind"
    assert figures["win_rate"]["value"] == figures["win_rate_by_gold"]["value"] == 0.5
    assert figures["win_rate_by_score"]["value"] == 1.0


def test_the_reward_that_was_optimised_gives_the_headline_where_there_is_no_gold_rule():
    figures = summarise_policy(answers([1.0]), None, 20, 0, baseline=answers([0.0], name="sft"), judges=JUDGES)

    assert figures["win_rate"]["by"] == "rule my_rules:short"
    assert figures["win_rate"]["value"] == 1.0
    assert figures["gold_mean"] is None and figures["win_rate_by_gold"] is None


def test_the_same_text_is_a_tie_whatever_the_batch_did_to_its_score():
    sft = answers([1.0, 0.0], name="sft", texts=["same", "other"])
    ppo = answers([1.01, 1.0], texts=["same", "new"])

    assert summarise_policy(ppo, None, 20, 0, baseline=sft)["win_rate"]["value"] == 0.75
    assert [example["winner"] for example in pick_examples(sft, ppo, ["p", "q"], 2, seed=0)] == ["tie", "ppo"]


def test_policies_that_answered_different_prompts_are_not_compared():
    with pytest.raises(AssertionError, match="different prompts"):
        summarise_policy(answers([1.0]), None, 20, 0, baseline=answers([1.0], groups=["elsewhere"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["scores", "kl", "gold"])
def test_a_score_that_is_no_number_stops_the_comparison(field, value):
    with pytest.raises(NumericsError, match=f"{field} of held-out response 1 is {value}"):
        replace(answers([1.0, 2.0], gold=[1.0, 1.0]), **{field: [0.0, value]})


def test_a_column_of_another_length_is_refused():
    with pytest.raises(AssertionError, match="lengths: 1 values for 2 texts"):
        answers([1.0, 2.0], lengths=[4])


def test_examples_begin_with_the_largest_losses_and_repeat_none():
    sft = answers([0.0] * 8, name="sft")
    ppo = answers([1.0, -1.0, 1.0, -5.0, 1.0, -3.0, 1.0, 1.0])

    examples = pick_examples(sft, ppo, list("abcdefgh"), num_examples=8, seed=0)

    assert [example["prompt"] for example in examples[:2]] == ["d", "f"]
    assert [example["picked"] for example in examples] == ["largest loss"] * 2 + ["at random"] * 6
    assert sorted(example["prompt"] for example in examples) == list("abcdefgh")


def test_more_examples_than_prompts_shows_every_prompt():
    assert len(pick_examples(answers([0.0]), answers([1.0]), ["p"], num_examples=24, seed=0)) == 1


def test_comparison_holds_the_same_figures_for_both_policies_and_is_plain_json():
    sft, ppo = answers(np.zeros(4), gold=np.zeros(4), name="sft"), answers(np.ones(4), gold=np.ones(4))

    report = compare_policies(sft, ppo, ["p"] * 4, {"sft": 5.0, "ppo": None}, JUDGES, 20, 2, seed=0)

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["win_rate"] == report["policies"]["ppo"]["win_rate"]
    assert set(report["policies"]["sft"]) <= set(report["policies"]["ppo"])
    assert (report["num_prompts"], report["num_responses"]) == (4, 4)
    assert report["gold"] == {"sft": [0.0] * 4, "ppo": [1.0] * 4}


def test_several_answers_to_a_prompt_count_as_one_prompt():
    sft, ppo = (answers([0.0] * 4, name=name, groups=["a", "a", "b", "b"]) for name in ("sft", "ppo"))

    report = compare_policies(sft, ppo, ["p"] * 4, {"sft": 1.0, "ppo": 1.0}, JUDGES, 20, 2, seed=0)

    assert (report["num_prompts"], report["num_responses"]) == (2, 4)


def test_curves_take_the_later_of_two_lines_for_a_step():
    rows = [
        {"step": 0, "time": 1.0, "objective/kl": 0.0, "eval/kl": 0.0},
        {"step": 1, "time": 2.0, "objective/kl": 9.0, "loss/policy_avg": 1.0},
        {"step": 1, "time": 3.0, "objective/kl": 1.0, "response/eos_rate": float("nan")},
    ]
    assert read_curves(rows) == {
        "objective/kl": {"step": [0, 1], "value": [0.0, 1.0]},
        "eval/kl": {"step": [0], "value": [0.0]},
    }


def test_frontier_holds_the_steps_where_both_score_and_kl_were_evaluated():
    curves = {"eval/kl": {"step": [0, 10], "value": [0.0, 4.0]}, "eval/scores": {"step": [10, 20], "value": [1.5, 2.0]}}

    assert read_frontier(curves) == [[4.0, 1.5, 10]]
    assert read_frontier({}) == []

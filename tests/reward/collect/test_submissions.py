"""Submissions: what may be entered, what is refused by the name of its field, and the ranks that are stored."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.collect.ranking.submissions import check, competition_ranks, parse_submission
from reward.collect.refusals import Refusal
from reward.collect.store.settings import Settings

# Ranks: (as entered, unacceptable, as stored)

RANKS = [
    ([1, 2, 3, 4], "", [1, 2, 3, 4]),
    ([4, 3, 2, 1], "", [4, 3, 2, 1]),
    ([1, 2, 2, 3], "", [1, 2, 2, 4]),
    ([1, 2, 2, 4], "", [1, 2, 2, 4]),
    ([7, 7, 7, 7], "", [1, 1, 1, 1]),
    ([10, 20, 20, 5], "", [2, 3, 3, 1]),
    ([1, 2, None, None], "cd", [1, 2, 3, 3]),
    ([3, 2, 1, 1], "cd", [2, 1, 3, 3]),
    ([None, None, None, None], "abcd", [1, 1, 1, 1]),
    ([2, None, 1, None], "", [2, None, 1, None]),
    ([2, None, 1, None], "b", [2, 3, 1, None]),
]


@pytest.mark.parametrize("entered, unacceptable, stored", RANKS)
def test_competition_ranks_are_stored(entered, unacceptable, stored):
    submission = parse_submission(
        {"ranks": dict(zip("abcd", entered, strict=True)), "unacceptable": list(unacceptable)}
    )
    check(submission, list("abcd"), Settings(allow_partial=True))
    assert list(competition_ranks(submission, list("abcd")).values()) == stored


@given(st.lists(st.integers(1, 5), min_size=2, max_size=9))
def test_competition_ranks_keep_the_order_and_do_not_change_a_second_time(entered):
    ids = [str(i) for i in range(len(entered))]
    ranks = competition_ranks(parse_submission({"ranks": dict(zip(ids, entered, strict=True))}), ids)
    assert competition_ranks(parse_submission({"ranks": ranks}), ids) == ranks
    for one in ids:
        assert ranks[one] == 1 + sum(other < entered[int(one)] for other in entered)


# What is refused

WRONG_TYPES = [
    ({"ranks": {"a": True, "b": 2}}, "ranks", "has True; a rank is a whole number from 1"),
    ({"ranks": {"a": 0}}, "ranks", "has 0; a rank"),
    ({"ranks": {"a": -1}}, "ranks", "has -1; a rank"),
    ({"ranks": {"a": 1.0}}, "ranks", "has 1.0; a rank"),
    ({"ranks": {"a": "1"}}, "ranks", "has '1'; a rank"),
    ({"ranks": [1, 2]}, "ranks", "must be an object"),
    ({"unacceptable": "a"}, "unacceptable", "must be a list of response ids"),
    ({"unacceptable": [1]}, "unacceptable", "must be a list of response ids"),
    ({"not_rankable": 3}, "not_rankable", "must be a text, not int"),
    ({"not_rankable": True}, "not_rankable", "must be a text, not bool"),
    ({"ratings": {"clear": 3}}, "ratings", "must be an object: criterion"),
    ({"ratings": {"clear": {"a": 6}}}, "ratings", "has 6; a rating is a whole number from 1 to 5"),
    ({"ratings": {"clear": {"a": 0}}}, "ratings", "has 0; a rating"),
    ({"ratings": {"clear": {"a": True}}}, "ratings", "has True; a rating"),
    ({"ratings": {"clear": {"a": 2.5}}}, "ratings", "has 2.5; a rating"),
    ({"comment": 3}, "comment", "must be a text, not int"),
    ({"comment": "a\0b"}, "comment", "has a NUL or half a character"),
    ({"comment": "\ud83d"}, "comment", "has a NUL or half a character"),
    ({"comment": "x" * 10_001}, "comment", "has 10001 characters; at most 10000"),
    ({"demonstration": "x" * 50_001}, "demonstration", "has 50001 characters; at most 50000"),
    ({"demonstration": "a\0"}, "demonstration", "has a NUL or half a character"),
    ({"active_seconds": -1}, "active_seconds", "must be a number of seconds"),
    ({"active_seconds": math.nan}, "active_seconds", "must be a number of seconds"),
    ({"active_seconds": math.inf}, "active_seconds", "must be a number of seconds"),
    ({"active_seconds": True}, "active_seconds", "must be a number of seconds"),
    ({"client": "me"}, "client", "must be a JSON object"),
    ({"client": {"width": math.nan}}, "client", "must be a JSON object"),
    ({"client": {"name": "x" * 2001}}, "client", "must be a JSON object of at most 2000 characters"),
    ({"client": {"a": ["b\0"]}}, "client", "without NUL"),
    ({"rank": {}}, "rank", "is not known; there are ranks, unacceptable"),
]


@pytest.mark.parametrize("wrong, field, message", WRONG_TYPES)
def test_what_is_of_the_wrong_type_is_refused_by_field(wrong, field, message):
    with pytest.raises(Refusal) as refused:
        parse_submission(wrong)
    assert list(refused.value.fields) == [field]
    assert message in refused.value.fields[field]
    assert refused.value.status == 422


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(Refusal) as refused:
        parse_submission({"ranks": 1, "comment": 2, "what": 3})
    assert set(refused.value.fields) == {"ranks", "comment", "what"}


@pytest.mark.parametrize("wrong", [None, [], "x", 3])
def test_a_submission_is_an_object(wrong):
    with pytest.raises(Refusal, match="a submission is a JSON object"):
        parse_submission(wrong)


FULL = {"ranks": {"a": 1, "b": 2, "c": 3}}
AGAINST_THE_RULES = [
    ({"ranks": {"a": 1, "b": 2, "x": 3}}, {}, "ranks", "'x' is not a response of this item"),
    (FULL | {"unacceptable": ["x"]}, {}, "unacceptable", "'x' is not a response of this item"),
    (FULL | {"ratings": {"clear": {"x": 1}}}, {"criteria": ("clear",)}, "ratings", "'x' is not a response of"),
    (FULL | {"ratings": {"kind": {"a": 1}}}, {"criteria": ("clear",)}, "ratings", "'kind' is not rated here; clear is"),
    ({"ranks": {"a": 1, "b": 2}}, {}, "ranks", "1 of 3 responses have no rank yet; rank all of them"),
    ({"ranks": {"a": 1, "b": 2, "c": None}}, {}, "ranks", "1 of 3 responses have no rank yet"),
    ({}, {}, "ranks", "3 of 3 responses have no rank yet"),
    ({"ranks": {"a": 1}}, {"allow_partial": True}, "ranks", "rank 2 responses or more"),
    ({"ranks": {"a": 1, "b": 1, "c": 2}}, {"allow_ties": False}, "ranks", "puts two responses at the same place"),
    (FULL | {"not_rankable": "no"}, {}, "not_rankable", "contradicts the ranks"),
    ({"unacceptable": ["a"], "not_rankable": "no"}, {}, "not_rankable", "contradicts the ranks"),
    (FULL | {"comment": " "}, {"require_comment": True}, "comment", "is needed"),
]


@pytest.mark.parametrize("said, settings, field, message", AGAINST_THE_RULES)
def test_what_is_against_the_rules_of_the_collection_is_refused_by_field(said, settings, field, message):
    with pytest.raises(Refusal) as refused:
        check(parse_submission(said), ["a", "b", "c"], Settings(**settings))
    assert message in refused.value.fields[field]


@pytest.mark.parametrize(
    "said, settings",
    [
        (FULL, {}),
        ({"ranks": {"a": 1, "b": 1, "c": 2}}, {}),
        ({"ranks": {"a": 1}, "unacceptable": ["b", "c"]}, {"allow_ties": False}),
        ({"unacceptable": ["a", "b", "c"]}, {}),
        ({"ranks": {"a": 1, "c": 2}}, {"allow_partial": True}),
        ({"ranks": {"a": 1}, "unacceptable": ["b"]}, {"allow_partial": True}),
        ({"not_rankable": "no"}, {"require_comment": True}),
        ({"ranks": {"a": None, "b": None}, "not_rankable": "no"}, {}),
        (FULL | {"ratings": {"clear": {"a": 1, "c": 5}}}, {"criteria": ("clear", "kind")}),
        (FULL | {"comment": "x" * 10_000, "demonstration": "\\u0000 \N{GRINNING FACE}"}, {}),
    ],
)
def test_what_keeps_the_rules_is_accepted(said, settings):
    check(parse_submission(said), ["a", "b", "c"], Settings(**settings))

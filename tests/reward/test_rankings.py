"""Rankings and pairs in every form they may be given, and what bad ones get told."""

import json
import math

import pytest
from omegaconf import OmegaConf

from reward.rankings import load_rankings, parse_ranking
from rlhf.data import split_of
from rlhf.data_report import DataReport
from rlhf.errors import UserError
from rlhf.records import Row

USER = {"role": "user", "content": "Where is my parcel?"}
THANKS = {"role": "user", "content": "Thanks!"}
RANKING = {"prompt": "Where is my parcel?", "responses": ["On its way.", "No idea.", "Ask."], "ranks": [1, 3, 2]}
PAIR = {"prompt": "Where is my parcel?", "chosen": "On its way.", "rejected": "No idea."}


def assistant(text):
    return {"role": "assistant", "content": text}


def parse(**values):
    return parse_ranking(Row(values, "data/r.jsonl:7"))


def told(**values):
    """The message that a bad record gets."""
    with pytest.raises(UserError) as error:
        parse(**values)
    return str(error.value)


def load(tmp_path, records, report=None, **options):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = {"rankings": str(path), "on_error": "error", "fields": {}, "valid_share": 0.0, "test_share": 0.0, **options}
    return load_rankings(OmegaConf.create(data), report or DataReport())


def test_a_ranking_has_its_prompt_as_messages_and_its_ranks_as_given():
    ranking = parse(**RANKING)
    assert ranking.messages == (USER,)
    assert ranking.responses == ("On its way.", "No idea.", "Ask.")
    assert ranking.ranks == (1, 3, 2)
    assert (ranking.annotator, ranking.weight, ranking.margin, ranking.prompt_id) == (None, 1.0, None, None)
    assert ranking.where == "data/r.jsonl:7"


def test_ties_and_unranked_answers_are_kept():
    assert parse(**{**RANKING, "ranks": [2, None, 2]}).ranks == (2, None, 2)


def test_optional_fields_are_taken_and_null_means_not_given():
    ranking = parse(**RANKING, annotator=3, weight=2, margin=0.5, prompt_id=12, meta={"x": 1})
    assert (ranking.annotator, ranking.weight, ranking.margin, ranking.prompt_id) == ("3", 2.0, 0.5, "12")
    empty = parse(**RANKING, annotator=None, weight=None, margin=None, prompt_id=None)
    assert (empty.annotator, empty.weight, empty.margin, empty.prompt_id) == (None, 1.0, None, None)


def test_a_transcript_prompt_is_its_turns():
    ranking = parse(**{**RANKING, "prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Thanks!\n\nAssistant:"})
    assert ranking.messages == ({"role": "user", "content": "Hi"}, assistant("Hello."), THANKS)


def test_messages_win_over_a_prompt():
    ranking = parse(**{**RANKING, "prompt": "the same as text", "messages": [USER]})
    assert ranking.messages == (USER,)


def test_group_is_the_key_where_it_is_given():
    one, other = parse(**RANKING, group="a"), parse(**{**RANKING, "prompt": "Something else?"}, group="a")
    assert one.key == other.key
    assert one.key != parse(**RANKING).key


@pytest.mark.parametrize(
    "pair",
    [
        PAIR,
        {**PAIR, "chosen": [assistant("On its way.")], "rejected": [assistant("No idea.")]},
        {**PAIR, "chosen": [USER, assistant("On its way.")], "rejected": [USER, assistant("No idea.")]},
        {"messages": [USER], "chosen": "On its way.", "rejected": "No idea."},
        {"chosen": [USER, assistant("On its way.")], "rejected": [USER, assistant("No idea.")]},
        {
            "chosen": "\n\nHuman: Where is my parcel?\n\nAssistant: On its way.",
            "rejected": "\n\nHuman: Where is my parcel?\n\nAssistant: No idea.",
        },
        {
            "prompt": "\n\nHuman: Where is my parcel?\n\nAssistant:",
            "chosen": "\n\nHuman: Where is my parcel?\n\nAssistant: On its way.",
            "rejected": "\n\nHuman: Where is my parcel?\n\nAssistant: No idea.",
        },
        {"chosen": "Where is my parcel? On its way.", "rejected": "Where is my parcel? No idea."},
    ],
    ids=["texts", "answer messages", "dialogues", "messages", "implicit", "hh", "hh with prompt", "implicit texts"],
)
def test_a_pair_in_any_form_is_a_ranking_of_two(pair):
    ranking = parse(**pair, margin=2)
    assert (ranking.messages, ranking.responses) == ((USER,), ("On its way.", "No idea."))
    assert (ranking.ranks, ranking.margin) == ((1, 2), 2.0)
    assert ranking.key == parse(**RANKING).key


def test_what_two_dialogues_share_but_the_last_turn_is_the_prompt():
    shared = [USER, assistant("On its way."), THANKS]
    ranking = parse(chosen=[*shared, assistant("Gladly.")], rejected=[*shared, assistant("Bye.")])
    assert (ranking.messages, ranking.responses) == (tuple(shared), ("Gladly.", "Bye."))


def test_texts_are_split_between_words():
    ranking = parse(chosen="The sky is blue.", rejected="The sky is black.")
    assert (ranking.messages[0]["content"], ranking.responses) == ("The sky is", ("blue.", "black."))
    assert parse(chosen="The sky is", rejected="The sky is not").responses == ("is", "is not")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "field 'prompt' is null"),
        ({"prompt": " "}, "field 'prompt' is empty"),
        ({"responses": None}, "field 'responses' is null"),
        ({"responses": "On its way."}, "field 'responses' must be a list of strings, not a string"),
        ({"responses": ["one"], "ranks": [1]}, "field 'responses' has 1 answers; a ranking needs 2 or more"),
        ({"responses": ["one", "", "x"]}, "field 'responses[1]' is empty; leave the answer and its rank out"),
        ({"responses": ["one", "two", 3]}, "field 'responses[2]' is a number; an answer must be a string"),
        ({"ranks": 1}, "field 'ranks' must be a list of numbers, not a number"),
        ({"ranks": [1, 2]}, "field 'ranks' has 2 entries for 3 responses; give one rank for each response, null for"),
        ({"ranks": [1, None, None]}, "field 'ranks' ranks 1 of 3 responses; rank at least 2, or leave the record out"),
        ({"annotator": ["x"]}, "field 'annotator' must be a name or a whole number, not a list"),
        ({"prompt_id": True}, "field 'prompt_id' must be a name or a whole number, not true or false"),
        ({"margin": -1}, "field 'margin' is -1; margin must be a finite number from 0, or left out"),
        ({"margin": math.inf}, "field 'margin' is inf; margin must be a finite number from 0, or left out"),
        ({"messages": [assistant("x")]}, "field 'messages[0].role' is 'assistant', must be 'user'"),
    ],
)
def test_a_bad_ranking_is_told_place_field_and_rule(change, message):
    assert told(**{**RANKING, **change}).startswith(f"data/r.jsonl:7: {message}")


@pytest.mark.parametrize("rank", [0, -1, 1.5, 1.0, math.nan, True, "1", 10**30])
def test_a_rank_is_a_whole_number_from_one(rank):
    message = told(**{**RANKING, "ranks": [1, rank, 2]})
    rule = "a rank must be a whole number from 1 (the best) to 1000000, or null for not ranked"
    assert message == f"data/r.jsonl:7: field 'ranks[1]' is {rank!r}; {rule}"


@pytest.mark.parametrize("weight", [0, -0.5, math.nan, math.inf, True, "2", 10**400])
def test_a_weight_is_a_finite_number_above_zero(weight):
    message = told(**RANKING, weight=weight)
    assert message.startswith("data/r.jsonl:7: field 'weight' is ")
    assert message.endswith("; weight must be a finite number above 0, or left out")


def test_a_missing_field_is_told_with_what_was_found_and_how_to_map_it():
    values = {"prompt": "p", "answers": ["a", "b"], "ranks": [1, 2]}
    assert told(**values) == (
        "data/r.jsonl:7: field 'responses' is missing (found: prompt, answers, ranks). "
        "Map it with +data.fields.responses=answers"
    )


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "field 'rejected' is missing (found: prompt, chosen)"),
        ({**PAIR, "rejected": " "}, "field 'rejected' is empty"),
        ({**PAIR, "rejected": []}, "field 'rejected' is empty"),
        ({**PAIR, "rejected": 5}, "field 'rejected' must be a string, not a number"),
        (
            {"question": "q", "chosen": "a", "rejected": "b"},
            "field 'prompt' is missing (found: question, chosen, rejected)",
        ),
        ({"chosen": "Yes, sir.", "rejected": "No, sir."}, "field 'prompt' is missing (found: chosen, rejected)"),
        (
            {"chosen": [assistant("a")], "rejected": [assistant("b")]},
            "field 'prompt' is missing (found: chosen, rejected)",
        ),
        ({"chosen": [USER], "rejected": [USER]}, "field 'chosen' must end with an answer of the assistant"),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes.", "rejected": "\n\nHuman: Ho\n\nAssistant: No."},
            "fields 'chosen' and 'rejected' differ before their last turn; they must answer the same prompt",
        ),
        (
            {**PAIR, "chosen": [THANKS, assistant("On its way.")]},
            "field 'chosen' must be one answer to the prompt, or the prompt's turns and one answer",
        ),
        ({**PAIR, "chosen": ["On its way."]}, "field 'chosen[0]' must be {role, content}, both strings"),
    ],
)
def test_a_bad_pair_is_told_place_field_and_rule(pair, message):
    assert told(**pair).startswith(f"data/r.jsonl:7: {message}")


def test_splits_are_by_the_key(tmp_path):
    records = [{**RANKING, "prompt": f"Question {n}?", "annotator": a} for n in range(60) for a in "xy"]
    splits = load(tmp_path, records, valid_share=0.2, test_share=0.2)
    assert all(len(rankings) > 0 for rankings in splits.values())
    for split, rankings in splits.items():
        assert {split_of(ranking.key, 0.2, 0.2) for ranking in rankings} == {split}


def test_fields_are_mapped(tmp_path):
    records = [{"question": "q", "answers": ["a", "b"], "order": [2, 1]}]
    fields = {"prompt": "question", "responses": "answers", "ranks": "order"}
    [ranking] = load(tmp_path, records, fields=fields)["train"]
    assert (ranking.responses, ranking.ranks) == (("a", "b"), (2, 1))


def test_a_bad_record_is_counted_with_on_error_skip(tmp_path):
    report = DataReport()
    splits = load(tmp_path, [RANKING, {**RANKING, "ranks": [1, 2]}], report, on_error="skip")
    assert len(splits["train"]) == 1
    [skipped] = report.as_dict()["skipped"]
    assert (skipped["count"], skipped["places"]) == (1, [f"{tmp_path}/r.jsonl:2"])
    with pytest.raises(UserError, match=r"r\.jsonl:2: field 'ranks' has 2 entries for 3 responses"):
        load(tmp_path, [RANKING, {**RANKING, "ranks": [1, 2]}])


def test_rankings_that_tie_everything_everywhere_are_refused(tmp_path):
    tied = {**RANKING, "ranks": [2, None, 2]}
    with pytest.raises(
        UserError, match=r"r\.jsonl:1: field 'ranks' is \[2, None, 2\], and all 2 training .* nothing to"
    ):
        load(tmp_path, [tied, {**tied, "prompt": "Another?"}])
    assert len(load(tmp_path, [tied, RANKING])["train"]) == 2


def test_exact_duplicates_are_counted_and_kept(tmp_path):
    report = DataReport()
    splits = load(tmp_path, [RANKING, RANKING, {**RANKING, "annotator": "x"}], report)
    assert len(splits["train"]) == 3
    assert report.as_dict()["sources"][0]["duplicates"] == 1


def test_contradictions_are_counted_and_kept(tmp_path):
    agrees = {**PAIR, "annotator": "x"}
    turned = {**RANKING, "responses": ["No idea.", "On its way."], "ranks": [1, 2]}
    same_answer = {**RANKING, "prompt": "Else?", "responses": ["a", "a"], "ranks": [1, 2]}
    tied = {**turned, "ranks": [1, 1]}
    elsewhere = {**turned, "prompt": "Another?"}
    report = DataReport()
    splits = load(tmp_path, [RANKING, agrees, turned, same_answer, tied, elsewhere], report)
    assert len(splits["train"]) == 6
    assert report.as_dict()["contradictions"] == {
        "count": 2,
        "places": [
            f"{tmp_path}/r.jsonl:3 against {tmp_path}/r.jsonl:1",
            f"{tmp_path}/r.jsonl:4 has the same answer at two ranks",
        ],
    }


def test_two_known_annotators_who_differ_disagree_and_one_who_differs_from_himself_contradicts(tmp_path):
    turned = {**RANKING, "responses": ["No idea.", "On its way."], "ranks": [1, 2]}
    report = DataReport()
    load(tmp_path, [{**RANKING, "annotator": "x"}, {**turned, "annotator": "y"}, {**turned, "annotator": "x"}], report)
    found = report.as_dict()
    assert (found["disagreements"]["count"], found["contradictions"]["count"]) == (1, 1)


def test_a_source_with_weight_repeats_its_training_rankings_but_reports_them_once(tmp_path):
    report = DataReport()
    path = str(tmp_path / "r.jsonl")
    records = [RANKING, {**RANKING, "ranks": [3, 1, 2]}]
    splits = load(tmp_path, records, report, rankings=[{"path": path, "weight": 2}])
    assert len(splits["train"]) == 4
    assert report.as_dict()["contradictions"]["count"] == 1

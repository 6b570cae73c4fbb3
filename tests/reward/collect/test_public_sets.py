"""Rankings from public sets and from one's own columns: small made-up files in the true shape of each."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from reward.collect import formats
from reward.collect.refusals import Refusal
from reward.ranking_hints import PUBLIC_SHAPES
from reward.rankings import parse_ranking
from rlhf.data.records import Row, read_rows
from rlhf.data.report import DataReport
from rlhf.errors import UserError

DOCUMENT = Path(__file__).parents[3] / "docs" / "rankings.md"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(tmp_path, name, *records, problems=None, notes=None, **options):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(formats.read(name, path, problems, notes, **options))


def told(tmp_path, name, *records, **options):
    with pytest.raises((UserError, Refusal)) as error:
        read(tmp_path, name, *records, **options)
    return str(error.value).replace(f"{tmp_path}/", "")


def order(row):
    """The ranking as a reader sees it: the answers of each rank, best first; those not ranked last, in brackets."""
    named = sorted((rank, text) for rank, text in zip(row["ranks"], row["responses"], strict=True) if rank is not None)
    ranks = sorted({rank for rank, _ in named})
    unranked = [f"({text})" for rank, text in zip(row["ranks"], row["responses"], strict=True) if rank is None]
    return " > ".join(["=".join(text for at, text in named if at == rank) for rank in ranks] + unranked)


SHP = {"post_id": "x1", "history": "Why?", "human_ref_A": "A", "human_ref_B": "B", "score_A": 3, "score_B": 9}
WEBGPT = {"question": {"dataset": "eli5", "id": "q", "full_text": "Why?"}, "answer_0": "A", "answer_1": "B"}
PKU = {"prompt": "Why?", "response_0": "A", "response_1": "B", "better_response_id": 1, "safer_response_id": 0}
ARENA = {"conversation_a": [user("Why?"), assistant("A")], "conversation_b": [user("Why?"), assistant("B")]}
STRENGTH = {"prompt": "Why?", "response_1": "A", "response_2": "B"}
HELPSTEER3 = {"context": [user("Why?")], "response1": "A", "response2": "B"}
ALPACA = {"instruction": "Sum up.", "input": "Long.", "output_1": "A", "output_2": "B"}


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("shp", {**SHP, "labels": 1}, "A > B"),
        ("shp", {**SHP, "labels": 0}, "B > A"),
        ("shp", {**SHP, "labels": "1"}, "A > B"),  # of a CSV
        ("webgpt", {**WEBGPT, "score_0": -0.5, "score_1": 0.5}, "B > A"),
        ("webgpt", {**WEBGPT, "score_0": 0.0, "score_1": 0.0}, "A=B"),
        ("arena", {**ARENA, "winner": "model_a"}, "A > B"),
        ("arena", {**ARENA, "winner": "model_b"}, "B > A"),
        ("arena", {**ARENA, "winner": "tie"}, "A=B"),
        ("arena", {**ARENA, "winner": "tie (bothbad)"}, "A=B"),
        ("helpsteer_pairs", {**STRENGTH, "preference_strength": -3}, "A > B"),
        ("helpsteer_pairs", {**STRENGTH, "preference_strength": 1}, "B > A"),
        ("helpsteer_pairs", {**STRENGTH, "preference_strength": 0}, "A=B"),
        ("helpsteer3", {**HELPSTEER3, "overall_preference": -1}, "A > B"),
        ("helpsteer3", {**HELPSTEER3, "overall_preference": 2}, "B > A"),
        ("alpaca_farm", {**ALPACA, "preference": 1}, "A > B"),
        ("alpaca_farm", {**ALPACA, "preference": 2.0}, "B > A"),
        ("stack_paired", {"question": "Why?", "response_j": "A", "response_k": "B"}, "A > B"),
    ],
)
def test_the_verdict_on_two_answers_is_read_as_the_set_means_it(tmp_path, name, record, expected):
    (row,) = read(tmp_path, name, record)
    assert order(row) == expected
    assert row["responses"] == ["A", "B"]
    prompt = "Sum up.\n\nLong." if name == "alpaca_farm" else "Why?"
    assert row["prompt"] == [user(prompt)]


def test_which_verdict_of_pku_is_meant_is_asked_and_never_guessed(tmp_path):
    assert told(tmp_path, "pku", PKU) == "format 'pku' needs --option by=..., one of better, safer"
    assert order(read(tmp_path, "pku", PKU, by="better")[0]) == "B > A"
    assert order(read(tmp_path, "pku", PKU, by="safer")[0]) == "A > B"


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("shp", {**SHP, "labels": 2}, "set.jsonl:1: field 'labels' is 2; must be one of 1, 0"),
        ("shp", {**SHP, "labels": True}, "set.jsonl:1: field 'labels' is True; must be one of 1, 0"),
        ("shp", SHP, "set.jsonl:1: field 'labels' is missing (found: "),
        ("webgpt", {**WEBGPT, "question": {}, "score_0": 1}, "set.jsonl:1: field 'question' has no 'full_text'"),
        ("arena", {**ARENA, "winner": "A"}, "set.jsonl:1: field 'winner' is 'A'; must be one of model_a, model_b, tie"),
        (
            "arena",
            {"conversation_a": [*ARENA["conversation_a"], user("And?"), assistant("C")],
             "conversation_b": [*ARENA["conversation_b"], user("And?"), assistant("D")], "winner": "tie"},
            "set.jsonl:1: fields 'chosen' and 'rejected' differ before their last turn",
        ),
        ("nectar", {"prompt": "p", "answers": "x"}, "set.jsonl:1: field 'answers' must be a list of objects"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_say_who_is_better_is_told_why(tmp_path, name, record, message):
    assert told(tmp_path, name, record).startswith(message)


# All answers in one record


def completion(text, overall, helpfulness):
    rated = {"helpfulness": {"Rating": helpfulness, "Rationale": "..."}, "honesty": {"Rating": "5"}}
    return {"model": f"model-{text}", "response": text, "overall_score": overall, "annotations": rated}


ULTRAFEEDBACK = {
    "source": "x",
    "instruction": "Why?",
    "completions": [completion("A", 8.5, "2"), completion("B", 3, "5"), completion("C", 8.5, "N/A")],
}


def test_ultrafeedback_is_ranked_by_the_score_that_is_named(tmp_path):
    assert "needs --option score=..., one of overall_score, fine-grained_score" in told(
        tmp_path, "ultrafeedback", ULTRAFEEDBACK
    )
    notes = Counter()
    (row,) = read(tmp_path, "ultrafeedback", ULTRAFEEDBACK, notes=notes, score="overall_score")
    assert order(row) == "A=C > B"
    assert notes == {"scores read as ranks: higher is better": 1, "equal scores kept as ties": 1}
    assert row["meta"]["sources"] == [[{"policy": f"model-{name}"}] for name in "ABC"]
    (row,) = read(tmp_path, "ultrafeedback", ULTRAFEEDBACK, score="helpfulness")
    assert order(row) == "B > A > (C)"


def test_nectar_is_ranked_by_its_ranks_and_its_prompt_is_a_transcript(tmp_path):
    answers = [{"answer": text, "model": "m", "rank": rank} for text, rank in (("A", 2.0), ("B", 1.0), ("C", 3.0))]
    (row,) = read(tmp_path, "nectar", {"prompt": "\n\nHuman: Why?\n\nAssistant: ", "answers": answers})
    assert (order(row), row["prompt"]) == ("B > A > C", [user("Why?")])


def test_stack_answers_are_ranked_by_their_votes(tmp_path):
    answers = [
        {"answer_id": i, "text": text, "pm_score": votes} for i, (text, votes) in enumerate((("A", 0), ("B", 4)))
    ]
    (row,) = read(tmp_path, "stack_answers", {"qid": 7, "question": "Why?", "answers": answers})
    assert (order(row), row["prompt_id"]) == ("B > A", "7")


# A row for each answer


def steered(prompt, text, **ratings):
    return {"prompt": prompt, "response": text, "verbosity": 2, "helpfulness": 3, **ratings}


def test_the_rows_of_a_prompt_are_one_ranking_by_the_attribute_that_is_named(tmp_path):
    rows = [steered("p", "A", helpfulness=2), steered("q", "C", helpfulness=1), steered("p", "B", helpfulness=4),
            steered("q", "D", helpfulness=1)]  # fmt: skip
    assert "needs --option attribute=..., one of helpfulness" in told(tmp_path, "helpsteer", *rows)
    assert [order(row) for row in read(tmp_path, "helpsteer", *rows, attribute="helpfulness")] == ["B > A", "C=D"]


def test_a_prompt_of_helpsteer_with_turns_is_a_dialogue(tmp_path):
    prompt = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nWhy?"
    (row,) = read(tmp_path, "helpsteer_pairs", {**STRENGTH, "prompt": prompt, "preference_strength": -1})
    assert row["prompt"] == [user("Hi"), assistant("Hello."), user("Why?")]


def test_an_answer_alone_is_told_and_left_out(tmp_path):
    problems = []
    rows = [steered("p", "A"), steered("q", "B"), steered("q", "C")]
    assert len(read(tmp_path, "helpsteer", *rows, problems=problems, attribute="helpfulness")) == 1
    assert [str(error).rpartition("/")[2] for error in problems] == [
        "set.jsonl:1: the only answer to its prompt; a ranking needs 2 or more"
    ]


def test_rows_of_one_s_own_are_ranked_by_prompt_and_annotator(tmp_path):
    scores = {("x", "A"): 1, ("x", "B"): 2, ("y", "A"): 5, ("y", "B"): 3}
    rows = [{"prompt": "p", "response": text, "annotator": who, "score": n} for (who, text), n in scores.items()]
    read_rows = read(tmp_path, "rows", *rows)
    assert [(row["annotator"], order(row)) for row in read_rows] == [("x", "B > A"), ("y", "A > B")]
    ranked = [{"prompt": "p", "response": text, "rank": rank} for text, rank in zip("AB", ("2", "1"), strict=True)]
    assert order(read(tmp_path, "rows", *ranked)[0]) == "B > A"
    assert "must have a 'score' (higher is better) or a 'rank'" in told(tmp_path, "rows", {**rows[0], "rank": 1})


# A column for each answer


@pytest.mark.parametrize(
    ("record", "options", "expected"),
    [
        ({"a": "A", "b": "B", "c": "C", "s1": 2, "s2": "7", "s3": 2}, {"scores": "s1,s2,s3"}, "B > A=C"),
        ({"a": "A", "b": "B", "c": "C", "s1": 2, "s2": 1, "s3": None}, {"ranks": "s1,s2,s3"}, "B > A > (C)"),
        ({"a": "A", "b": "B", "c": "C", "winner": "b"}, {"best": "winner"}, "B > A=C"),
        ({"a": "A", "b": "B", "c": "C", "winner": 3.0}, {"best": "winner", "words": "1,2,3"}, "C > A=B"),
        ({"a": "A", "b": "B", "c": "C", "winner": "tie"}, {"best": "winner"}, "A=B=C"),
        ({"a": None, "b": "B", "c": "C", "winner": "c"}, {"best": "winner"}, "C > B"),
        ({"a": "A", "c": "C", "s1": 1, "s3": 4}, {"scores": "s1,s2,s3"}, "C > A"),
    ],
)
def test_columns_of_one_s_own_are_named_by_options(tmp_path, record, options, expected):
    (row,) = read(tmp_path, "columns", {"prompt": "Why?", **record}, responses="a, b, c", **options)
    assert (order(row), row["prompt"]) == (expected, [user("Why?")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "format 'columns' needs --option responses=COLUMN,COLUMN and one of"),
        ({"responses": "a,b"}, "format 'columns' needs --option responses=COLUMN,COLUMN and one of"),
        ({"responses": "a,b", "scores": "c"}, "scores=c must name as many as responses: 2"),
        ({"responses": "a,b", "best": "c"}, "set.jsonl:1: field 'c' is 'x'; must be one of a, b, tie"),
        ({"responses": "a,d", "best": "c"}, "set.jsonl:1: field 'c' is 'x'; must be one of a, tie"),
        ({"responses": "a,d", "scores": "a,b"}, "set.jsonl:1: field 'a' is 'A'; a score must be a finite number"),
        ({"responses": "a,b", "better": "c"}, "format 'columns' has no option 'better'"),
    ],
)
def test_columns_that_do_not_say_who_is_better_are_refused(tmp_path, options, message):
    assert told(tmp_path, "columns", {"prompt": "p", "a": "A", "b": "B", "c": "x"}, **options).startswith(message)


# Whatever the file is


@pytest.mark.parametrize(
    ("name", "options", "record"),
    [
        ("shp", {}, {**SHP, "post_id": "007", "history": "Why, oh\nwhy?", "labels": 0}),
        (
            "columns",
            {"responses": "a,b", "scores": "x,y"},
            {"prompt": "p", "a": "A", "b": "B", "x": 2, "y": 3.5, "weight": 2},
        ),
        ("canonical", {}, {"prompt": "p", "responses": ["A", "B"], "ranks": [2, 1], "annotator": "kim", "weight": 2}),
        ("canonical", {}, {"instruction": "Sum up.", "input": "Long.", "responses": ["A", "B"], "scores": [1, 2]}),
        ("trl", {}, {"prompt": "p", "chosen": "A", "rejected": "B", "margin": 0.5}),
    ],
)
def test_tables_and_arrays_are_imported_like_json_lines(tmp_path, name, options, record):
    cells = [value if isinstance(value, str) else json.dumps(value) for value in record.values()]
    (tmp_path / "set.json").write_text(json.dumps([record], indent=2))
    for suffix, dialect in ((".csv", "excel"), (".tsv", "excel-tab")):
        with (tmp_path / f"set{suffix}").open("w", newline="") as file:
            csv.writer(file, dialect).writerows([list(record), cells])
    expected = read(tmp_path, name, record, **options)
    for suffix in (".json", ".csv", ".tsv"):
        assert list(formats.read(name, tmp_path / f"set{suffix}", **options)) == expected


# Open Assistant


def message(number, text, role, rank=None, **rest):
    return {"message_id": f"m{number}", "text": text, "role": role, "rank": rank, **rest}


def test_each_question_of_a_tree_with_two_ranked_replies_is_a_ranking(tmp_path):
    below = [
        message(5, "Really?", "prompter", replies=[message(6, "D", "assistant", 0), message(7, "E", "assistant", 1)])
    ]
    replies = [
        message(1, "A", "assistant", 2),
        message(2, "B", "assistant", 0, replies=below),
        message(3, "gone", "assistant", 1, deleted=True),
        message(4, "C", "assistant"),
    ]
    tree = {"message_tree_id": "m0", "prompt": message(0, "Why?", "prompter", replies=replies)}
    rows = read(tmp_path, "oasst", tree)
    assert [(order(row), row["prompt_id"]) for row in rows] == [("B > A > (C)", "m0"), ("D > E", "m5")]
    assert rows[1]["prompt"] == [user("Why?"), assistant("B"), user("Really?")]


def test_single_messages_make_the_same_rankings_as_their_tree(tmp_path):
    rows = [
        message(1, "A", "assistant", 1, parent_id="m0"),
        message(0, "Why?", "prompter", parent_id=None),
        message(2, "B", "assistant", 0.0, parent_id="m0"),
    ]
    (row,) = read(tmp_path, "oasst", *rows)
    assert (order(row), row["prompt"]) == ("B > A", [user("Why?")])
    assert "its thread goes up to 'm0', which is not in the file" in told(tmp_path, "oasst", rows[0], rows[2])
    rows[1]["parent_id"] = "m1"
    assert "its thread goes up to 'm0', which comes again above itself" in told(tmp_path, "oasst", *rows)


# The document


ROW_OF_TABLE = re.compile(r"^\| `(\w+)((?: --option \w+=\S+)*)` \|.*?\| `(\{.*\})` \|", re.MULTILINE)
OPTION = re.compile(r"--option (\w+)=(\S+)")


def documented():
    """(format, options, record) of each example in the document's table of imports."""
    rows = ROW_OF_TABLE.findall(DOCUMENT.read_text())
    return [(name, dict(OPTION.findall(options)), json.loads(record)) for name, options, record in rows]


def complete(name, record):
    """The records of a small file: a set with a row for each answer needs two."""
    return [record, {**record, "response": "another"}] if name in ("rows", "helpsteer") else [record]


EXAMPLES = [pytest.param(*example, id=example[0]) for example in documented()]


@pytest.mark.parametrize(("name", "options", "record"), EXAMPLES)
def test_each_documented_example_is_read_and_a_recognised_set_names_its_import(tmp_path, name, options, record):
    assert len(read(tmp_path, name, *complete(name, record), **options)) == 1
    if name in PUBLIC_SHAPES:
        with pytest.raises(UserError, match=f"import --rankings {name} FILE --to OUT"):
            parse_ranking(Row(record, "set.jsonl:1"))


def broken(value):
    """The value with one place in it replaced by what does not belong there, in every way."""
    yield from (odd for odd in (None, True, -7, 0.5, "x", "", [], {}, ["x"], {"x": 1}) if odd != value)
    for key, inside in value.items() if isinstance(value, dict) else ():
        yield from ({**value, key: other} for other in broken(inside))
    for i, inside in enumerate(value) if isinstance(value, list) else ():
        yield from ([*value[:i], other, *value[i + 1 :]] for other in broken(inside))


@pytest.mark.parametrize(("name", "options", "record"), EXAMPLES)
def test_whatever_is_in_a_record_it_is_read_or_refused_in_one_line(tmp_path, name, options, record):
    for other in broken(record):
        problems = []
        read(tmp_path, name, *complete(name, other), problems=problems, **options) if isinstance(other, dict) else []
        assert all("\n" not in str(problem) for problem in problems)


def test_every_import_is_documented_and_every_hint_is_an_import():
    assert {name for name, *_ in documented()} | {"parquet"} == set(formats.READERS)
    assert set(PUBLIC_SHAPES) <= set(formats.READERS)


def test_lists_in_a_table_are_read_by_the_stage_and_the_import_alike(tmp_path):
    path = tmp_path / "rankings.csv"
    path.write_text('prompt,responses,ranks\nWhy?,"[""A"", ""B""]","[2, 1]"\n')
    (ranking,) = read_rows(str(path), "error", DataReport(), "rankings", parse=parse_ranking)
    (row,) = formats.read("canonical", path)
    assert (ranking.responses, ranking.ranks) == (("A", "B"), (2, 1))
    assert (row["responses"], row["ranks"]) == (["A", "B"], [2, 1])

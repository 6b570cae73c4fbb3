"""Answers made elsewhere: what a line may hold, and what each kind of bad line is told."""

import json

import pytest

from reward.collect.intake.answers import AnswerFile
from reward.collect.ranking.items import NewResponse, add_items
from rlhf.data import files as data_files
from rlhf.errors import UserError

GOOD = {"prompt": "Why?", "responses": ["Because.", "No idea."]}


def write(tmp_path, *lines):
    """A file of these lines: dicts as JSON, bytes as they are."""
    path = tmp_path / "answers.jsonl"
    path.write_bytes(
        b"".join((json.dumps(line).encode() if isinstance(line, dict) else line) + b"\n" for line in lines)
    )
    return path


def read_answers(path, gold=False):
    """(the items of a file's good lines, what is wrong with each bad line)."""
    errors = []
    return list(AnswerFile(path, gold).items(errors.append)), errors


def told(tmp_path, line, gold=False):
    """What is wrong with the one bad line, less the name of the folder."""
    path = write(tmp_path, line)
    items, errors = read_answers(path, gold)
    assert items == [] and len(errors) == 1
    return str(errors[0]).replace(f"{tmp_path}/", "")


def read_one(tmp_path, line, gold=False):
    (item,), errors = read_answers(write(tmp_path, line), gold)
    assert errors == []
    return item


def test_a_line_is_a_prompt_with_its_answers(tmp_path):
    item = read_one(tmp_path, {**GOOD, "prompt_id": 7, "group": "g", "meta": {"topic": "t"}, "lang": "en"})
    assert item.messages == [{"role": "user", "content": "Why?"}]
    assert [one.text for one in item.responses] == ["Because.", "No idea."]
    assert (item.prompt_id, item.group, item.gold_ranks) == ("7", "g", None)
    assert item.meta == {"topic": "t", "lang": "en"}
    assert item.where == f"{tmp_path}/answers.jsonl:1"


def test_a_prompt_may_be_a_dialogue(tmp_path):
    dialogue = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    assert read_one(tmp_path, {"messages": dialogue, "responses": ["a", "b"]}).messages == dialogue


def test_a_source_is_an_object_or_a_name_or_else_the_line(tmp_path):
    responses = [{"text": "a", "source": {"policy": "x", "seed": 1}}, {"text": "b", "source": "gpt"}, "c"]
    assert read_one(tmp_path, {"prompt": "Why?", "responses": responses}).responses == [
        NewResponse("a", {"policy": "x", "seed": 1}),
        NewResponse("b", {"policy": "gpt"}),
        NewResponse("c", {"file": f"{tmp_path}/answers.jsonl:1"}),
    ]


def test_gold_items_have_the_right_ranks(tmp_path):
    assert read_one(tmp_path, {**GOOD, "ranks": [2, 1]}, gold=True).gold_ranks == [2, 1]


def test_every_bad_line_is_told_with_its_place_and_the_good_ones_are_kept(tmp_path):
    path = write(tmp_path, GOOD, b"{a", {"prompt": "Why?"}, GOOD, {**GOOD, "responses": ["a"]})
    items, errors = read_answers(path)
    assert [item.where for item in items] == [f"{path}:1", f"{path}:4"]
    assert [str(error).removeprefix(f"{path}:") for error in errors] == [
        "2:2: not valid JSON (Expecting property name enclosed in double quotes). Fix the line",
        "3: field 'responses' is missing (found: prompt). Map it with --field responses=<your name for it>",
        "5: field 'responses' has 1 answers; people rank 2 to 9 different answers",
    ]
    assert [error.rule for error in errors] == [
        "not valid JSON",
        "field 'responses' is missing",
        "people rank 2 to 9 different answers",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"responses": ["a", "b"]}, "field 'prompt' is missing (found: responses)"),
        ({"prompt": None, "responses": ["a", "b"]}, "field 'prompt' is null"),
        ({"prompt": " ", "responses": ["a", "b"]}, "field 'prompt' is empty"),
        (
            {"messages": [{"role": "assistant", "content": "Hi"}], "responses": ["a", "b"]},
            "field 'messages[0].role' is 'assistant', must be 'user': "
            "user and assistant must take turns, after one system turn or none",
        ),
        ({**GOOD, "responses": "a"}, "field 'responses' must be a list, not a string"),
        ({**GOOD, "responses": []}, "field 'responses' has 0 answers; people rank 2 to 9 different answers"),
        (
            {**GOOD, "responses": [str(i) for i in range(10)]},
            "field 'responses' has 10 answers; people rank 2 to 9 different answers",
        ),
        (
            {**GOOD, "responses": ["a", "a"]},
            "field 'responses' has 1 different among 2 answers; people rank 2 to 9 different answers",
        ),
        ({**GOOD, "responses": ["a", " \n"]}, "field 'responses[1]' is empty; leave the answer out"),
        (
            {**GOOD, "responses": ["a", 5]},
            "field 'responses[1]' is a number; an answer must be a string or {text, source}",
        ),
        ({**GOOD, "responses": ["a", {"source": "x"}]}, "field 'responses[1]' is null; an answer must be a string or"),
        ({**GOOD, "responses": ["a", {"txt": "b"}]}, "field 'responses[1]' has 'txt'; an answer is a string or {text,"),
        (
            {**GOOD, "responses": ["a", {"text": "b", "source": 3}]},
            "field 'responses[1].source' is 3; a source is a name",
        ),
        ({**GOOD, "prompt_id": True}, "field 'prompt_id' must be a name or a whole number, not true or false"),
        ({**GOOD, "group": []}, "field 'group' must be a name or a whole number, not a list"),
        ({**GOOD, "meta": "x"}, "field 'meta' must be an object, not a string"),
        ({**GOOD, "ranks": [1, 2]}, "field 'ranks' is for gold items (--gold)"),
        (b'["a"]', "a record must be a JSON object, not a string"),
        (b'{"prompt": "\xff"}', "byte 0xff at column 13 is not UTF-8"),
        (b'{"prompt": "\0"}', "NUL byte at column 13; is this a text file?"),
        (b'{"prompt": "\\u0000"}', "not valid JSON (a string has a NUL character or a lone surrogate"),
        (b'{"prompt": "a", "prompt": "b"}', "not valid JSON (a name is given twice in one object). Fix the line"),
    ],
)
def test_a_bad_line_is_told_what_the_rule_is(tmp_path, line, message):
    assert told(tmp_path, line).startswith(f"answers.jsonl:1: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "field 'ranks' is missing (found: prompt, responses)"),
        ({"ranks": [1]}, "field 'ranks' has 1 entries for 2 responses"),
        ({"ranks": [1, 2, 3]}, "field 'ranks' has 3 entries for 2 responses"),
        ({"ranks": {"Because.": 1, "Elsewhere.": 2}}, "field 'ranks' must be a list of numbers, not an object"),
        ({"ranks": [0, 1]}, "field 'ranks[0]' is 0; a rank must be a whole number from 1 (the best)"),
        ({"responses": ["a", "b", "c"], "ranks": [1, 2, None]}, "field 'ranks' leaves an answer out"),
        ({"responses": ["a", "b", "a"], "ranks": [1, 2, 3]}, "field 'ranks' puts the same answer at 1 and at 3"),
        ({"ranks": [1, 1]}, "field 'ranks' ties all answers, which nobody can get wrong"),
    ],
)
def test_bad_gold_ranks_are_told_what_the_rule_is(tmp_path, change, message):
    assert told(tmp_path, {**GOOD, **change}, gold=True).startswith(f"answers.jsonl:1: {message}")


def test_a_line_over_the_size_cap_is_told_and_the_next_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "MAX_LINE_BYTES", 100)
    path = write(tmp_path, {**GOOD, "responses": ["a" * 100, "b"]}, GOOD)
    items, errors = read_answers(path)
    assert [item.where for item in items] == [f"{path}:2"]
    assert str(errors[0]).startswith(f"{path}:1: the line is longer than")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="the file is empty; need at least one line"):
        read_answers(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_answers(tmp_path / "answers.jsonl")


def test_duplicate_answers_are_merged_and_told_when_they_are_added(tmp_path, database):
    items, errors = read_answers(write(tmp_path, {**GOOD, "responses": ["a", "b", "a"]}))
    with database.write() as session:
        added = add_items(session, items, "command line", 0.0)
    assert errors == []
    assert (added.items, added.merged) == (1, 1)
    assert added.notes == [
        f"{tmp_path}/answers.jsonl:1: answer 3 has the text of an earlier one; they are one answer now"
    ]

"""What the data loader promises: every kind of source, one line for every bad record, the same splits everywhere."""

import gzip
import hashlib
import json
import random
import time
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rlhf.config.schema import OnError
from rlhf.data.files import MAX_LINE_BYTES
from rlhf.data.load import (
    DataReport,
    Prompt,
    Source,
    check_leakage,
    distinct,
    load_demonstrations,
    load_prompts,
    num_passes,
    parse_hh,
    parse_sources,
    prompt_key,
    prompt_keys,
    read_rows,
    require_split,
    split_of,
)
from rlhf.data.sources import looks_like_hub_id, open_hub, source_sha256
from rlhf.errors import UserError

ROWS = [{"prompt": f"What is {i} plus {i}?", "completion": f"{2 * i}."} for i in range(40)]


@pytest.fixture(autouse=True)
def start_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data_config(**changed):
    values = dict(demonstrations=None, prompts=None, heldout=None, fields={}, on_error=OnError.error)
    return SimpleNamespace(**{**values, "valid_share": 0.0, "test_share": 0.0, **changed})


def write(path, *records):
    """A JSONL file of records (dicts) and raw lines (str or bytes)."""
    lines = [json.dumps(r) if isinstance(r, dict) else r for r in records]
    content = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    with (gzip.open if path.endswith(".gz") else open)(path, "wb") as file:
        file.write(content)
    return path


def demonstrations(*records, report=None, **changed):
    write("a.jsonl", *records)
    return load_demonstrations(data_config(demonstrations="a.jsonl", **changed), report or DataReport())["train"]


def prompts(*records, report=None, **changed):
    write("p.jsonl", *records)
    return load_prompts(data_config(prompts="p.jsonl", **changed), report or DataReport())["train"]


def error_of(*records, **changed):
    with pytest.raises(UserError) as caught:
        demonstrations(*records, **changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(path, **options):
    return list(read_rows(path, "error", DataReport(), **options))


def talk(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


# Sources


@pytest.mark.parametrize("path", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_rows_come_with_their_line_numbers_and_blank_lines_are_skipped(path):
    write(path, {"text": "one"}, "", "   ", {"text": "two"})
    rows = rows_of(path)
    assert [(row.values, row.where) for row in rows] == [({"text": "one"}, f"{path}:1"), ({"text": "two"}, f"{path}:4")]


def test_parquet_rows_come_with_their_row_numbers():
    pq.write_table(pa.Table.from_pylist(ROWS), "a.parquet")
    rows = rows_of("a.parquet")
    assert [row.values for row in rows] == ROWS
    assert rows[3].where == "a.parquet[3]"


def test_a_saved_datasets_folder_is_read_in_its_own_order():
    import datasets

    datasets.Dataset.from_list(ROWS).select(range(5, 0, -1)).save_to_disk("saved")
    rows = rows_of("saved")
    assert [row.values for row in rows] == ROWS[5:0:-1]
    assert rows[2].where == "saved[2]"


def test_a_saved_folder_of_several_splits_asks_which_one():
    import datasets

    parts = {"train": datasets.Dataset.from_list(ROWS[:3]), "test": datasets.Dataset.from_list(ROWS[3:5])}
    datasets.DatasetDict(parts).save_to_disk("saved")
    with pytest.raises(
        UserError, match=r"data.rows=saved: choose one of the splits train, test, e.g. \"data.rows='saved#train'\""
    ):
        rows_of("saved")
    with pytest.raises(UserError, match="choose one of the splits train, test"):
        rows_of("saved#tset")
    assert [row.values for row in rows_of("saved#test")] == ROWS[3:5]


def test_a_folder_is_its_jsonl_and_parquet_files_in_order_of_name(tmp_path):
    (tmp_path / "many").mkdir()
    write("many/b.jsonl.gz", {"text": "two"})
    write("many/a.jsonl", {"text": "one"})
    write("many/README.txt", "not data")
    assert [(row.where, row.values["text"]) for row in rows_of("many")] == [
        ("many/a.jsonl:1", "one"),
        ("many/b.jsonl.gz:1", "two"),
    ]


def test_a_hub_data_set_is_read_through_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner/name").mkdir(parents=True)
    write("owner/name/train.jsonl", *ROWS)
    opened = [open_hub("owner/name#train", "owner/name", "train", "data.prompts") for _ in range(2)]  # a folder here
    assert list(opened[0][0])[7] == ("owner/name#train[7]", ROWS[7])
    assert opened[0][1] == opened[1][1]


def test_a_hub_data_set_that_cannot_be_loaded_names_key_id_and_remedy(monkeypatch):
    for flag in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setattr(f"datasets.config.{flag}", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        rows_of("nobody/nothing@v1", kind="prompts")
    assert "data.prompts=nobody/nothing@v1: no such folder here, and the hub data set 'nobody/nothing'" in str(
        caught.value
    )
    assert "give a local path" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["data/toy.jsonl", "x.parquet", "/abs/path", "./a/b", "a/b/c", "here/b", "name", "a/b.csv"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name, tmp_path):
    (tmp_path / "here").mkdir()
    assert not looks_like_hub_id(name)


@pytest.mark.parametrize("name", ["owner/name", "openai/gsm8k@main", "a/b-v1.0@refs/convert"])
def test_owner_name_and_revision_is_a_hub_id(name):
    assert looks_like_hub_id(name)


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_in(tmp_path):
    with pytest.raises(UserError) as caught:
        rows_of("x.jsonl", kind="rankings")
    expected = "data.rankings=x.jsonl: no such file. Paths are relative to the folder you start from"
    assert str(caught.value) == f"{expected} ({tmp_path})"


@pytest.mark.parametrize(
    "path, message",
    [
        ("notes.txt", "this kind of file is not read; use .jsonl, .ndjson, .json, .csv, .tsv"),
        ("a.jsonl#train", "a file has no splits; use a.jsonl"),
        ("empty", "no data file (.jsonl, .ndjson, .json, .csv, .tsv (also with .gz), .parquet) and no saved data set"),
        ("/dev/null", "not a file or a folder"),
        ("a\0b", "no such file"),
        ("x" * 5000, "no such file"),
        ("cut.jsonl.gz", "cannot be read (EOFError"),
        ("not.jsonl.gz", "cannot be read (BadGzipFile"),
        ("bad.parquet", "cannot be read (Arrow"),
        ("saved", "cannot be read"),
        ("none.jsonl", "the source is empty (0 records); need at least 1"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_in_one_line(path, message, tmp_path):
    write("notes.txt", "hello")
    write("a.jsonl", *ROWS)
    write("none.jsonl", "", " ")
    for folder in ("empty", "saved"):
        (tmp_path / folder).mkdir()
    (tmp_path / "saved/state.json").write_text("{")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(random.Random(0).randbytes(9999).hex().encode())[:-2000])
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 garbage PAR1")
    with pytest.raises(UserError) as caught:
        rows_of(path)
    assert message in str(caught.value) and path in str(caught.value) and "\n" not in str(caught.value)


# Bad lines


@pytest.mark.parametrize(
    "line, message",
    [
        (
            '{"prompt" 1}',
            "a.jsonl:2:11: not valid JSON (Expecting ':' delimiter). Fix the line or set data.on_error=skip",
        ),
        ('{"prompt": "cut off', "a.jsonl:2:12: not valid JSON (Unterminated string starting at)"),
        ('{"a": NaN}', "a.jsonl:2: not valid JSON (NaN is not a finite number)"),
        ('{"a": -Infinity}', "a.jsonl:2: not valid JSON (-Infinity is not a finite number)"),
        ('{"a": 1e999}', "a.jsonl:2: not valid JSON (1e999 is not a finite number)"),
        ('{"a": 1, "a": 2}', "a.jsonl:2: not valid JSON (a name is given twice in one object)"),
        ("9" * 5000, "a.jsonl:2: not valid JSON (Exceeds the limit"),
        ("[" * 200_000, "a.jsonl:2: not valid JSON ("),
        ('{"text": "\\ud800"}', "lone surrogate"),
        ('{"text": "\\u0000"}', "NUL"),
        ('["a"]', "a.jsonl:2: a record must be a JSON object, not a list"),
        ("17", "a.jsonl:2: a record must be a JSON object, not a number"),
        (
            b'{"a": "\xff"}',
            "a.jsonl:2: byte 0xff at column 8 is not UTF-8; if it is in a Windows encoding",
        ),
        (b'{"a": "\0"}', "a.jsonl:2: NUL byte at column 8"),
        (b'\xef\xbb\xbf{"a": 1}', "a.jsonl:2: begins with a byte order mark in the middle of the file; take it out"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_column(line, message):
    assert message in error_of(ROWS[0], line)


def test_a_line_over_16_mb_is_refused_and_the_next_one_is_read():
    report = DataReport()
    records = demonstrations(
        ROWS[0], b'"' + b"x" * (2 * MAX_LINE_BYTES) + b'"', ROWS[1], on_error="skip", report=report
    )
    assert [record.where for record in records] == ["a.jsonl:1", "a.jsonl:3"]
    assert report.as_dict()["skipped"][0]["rule"] == "the line is longer than 16 MB; is it one record a line?"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=300), name=st.sampled_from(["r.jsonl", "r.jsonl.gz", "r.parquet"]), skip=st.booleans()
)
def test_reading_random_bytes_never_raises_anything_but_a_user_error(content, name, skip):
    with open(name, "wb") as file:
        file.write(content)
    config = data_config(demonstrations=name, on_error=OnError.skip if skip else OnError.error)
    with pytest.raises(UserError) as caught:
        load_demonstrations(config, DataReport())
    assert str(caught.value).isprintable()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "\n"]), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["prompt", "completion", "response", "messages", "text", "group", "meta", "\x1b[31m\n"])


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=st.dictionaries(NAMES, VALUES))
def test_random_json_records_are_read_or_refused_in_one_printable_line(record):
    for load in (demonstrations, prompts):
        try:
            load(record)
        except UserError as error:
            assert str(error).isprintable()


# Records


def test_prompt_and_completion_make_a_dialogue_of_two_turns():
    (record,) = demonstrations({"prompt": "Say hi.", "completion": "Hi!"})
    assert record.messages == ({"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"})
    assert (record.text, record.where) == (None, "a.jsonl:1")


def test_response_is_another_name_for_completion():
    (record,) = demonstrations({"prompt": "Say hi.", "response": "Hi!"})
    assert record.messages[-1]["content"] == "Hi!"


def test_a_prompt_may_be_a_list_of_messages():
    (record,) = demonstrations({"prompt": talk("A", "b", "C"), "completion": "d"})
    assert list(record.messages) == talk("A", "b", "C", "d")


def test_messages_take_precedence_over_prompt():
    (record,) = demonstrations({"prompt": "other", "messages": talk("A", "b"), "completion": "other"})
    assert list(record.messages) == talk("A", "b")


def test_messages_that_end_with_the_user_are_completed():
    (record,) = demonstrations({"messages": talk("A"), "completion": "b"})
    assert list(record.messages) == talk("A", "b")


def test_text_is_for_self_supervised_learning():
    (record,) = demonstrations({"text": "Once upon a time."})
    assert (record.messages, record.text) == ((), "Once upon a time.")


def test_a_system_turn_may_come_first_and_other_fields_of_a_message_are_left_out():
    messages = [{"role": "system", "content": "Be brief.", "name": "x"}, *talk("A", "b")]
    (record,) = demonstrations({"messages": messages})
    assert record.messages == ({"role": "system", "content": "Be brief."}, *talk("A", "b"))


def test_fields_map_our_names_to_theirs():
    (record,) = demonstrations({"question": "A?", "answer": "b"}, fields={"prompt": "question", "completion": "answer"})
    assert list(record.messages) == talk("A?", "b")


def test_a_source_of_a_mixture_without_the_mapped_name_keeps_ours():
    records = demonstrations(ROWS[0], {"prompt": "A?", "answer": "b"}, fields={"completion": "answer"})
    assert [record.messages[-1]["content"] for record in records] == ["0.", "b"]


def test_a_mapping_to_an_unknown_field_of_ours_is_refused():
    assert error_of(ROWS[0], fields={"completoin": "answer"}).startswith(
        "data.fields.completoin: 'completoin' is not a"
    )


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"prompt": "A", "answer": "b"},
            "field 'completion' is missing (found: prompt, answer); a demonstration needs 'prompt' and 'completion', "
            "or 'messages' that end with an answer, or 'text'. Map it with +data.fields.completion=answer",
        ),
        (
            {"prompt": "A"},
            "field 'completion' is missing (found: prompt); a demonstration needs 'prompt' and 'completion', or 'mess",
        ),
        (
            {"answer": "b"},
            "field 'prompt' is missing (found: answer); a demonstration needs 'prompt' and 'completion', or 'messages' "
            "that end with an answer, or 'text'. Map it with +data.fields.prompt=<your name for it>",
        ),
        ({}, "field 'prompt' is missing (found: )"),
        ({"prompt": "A", "completion": None}, "field 'completion' is null"),
        ({"prompt": "A", "completion": " \n"}, "field 'completion' is empty"),
        (
            {"prompt": "A", "completion": ["b"]},
            "field 'completion' is a list; an answer must be a string, or one message of the assistant",
        ),
        ({"prompt": "", "completion": "b"}, "field 'prompt' is empty"),
        ({"prompt": 3, "completion": "b"}, "field 'prompt' must be a string, not a number"),
        ({"prompt": talk("A", "b"), "completion": "c"}, "field 'prompt' must end with a user turn"),
        ({"prompt": [], "completion": "b"}, "field 'prompt' has no user turn"),
        ({"messages": "A"}, "field 'messages' must be a list of {role, content}, not a string"),
        ({"messages": talk("A")}, "field 'messages' must end with the assistant turn to learn, not with a user turn"),
        ({"messages": [{"role": "system", "content": "s"}]}, "field 'messages' has no user turn"),
        ({"messages": ["A", "b"]}, "field 'messages[0]' must be {role, content}, both strings"),
        ({"messages": talk("A", " ")}, "field 'messages[1].content' is empty"),
        (
            {"messages": [*talk("A"), *talk("A", "b")]},
            "field 'messages[1].role' is 'user', must be 'assistant': user and assistant must take turns",
        ),
        ({"messages": [{"role": "bot", "content": "b"}]}, "field 'messages[0].role' is 'bot', must be 'user'"),
        ({"prompt": "A", "completion": "b", "group": []}, "field 'group' must be a name or a whole number, not a list"),
        ({"text": " "}, "field 'text' is empty"),
    ],
)
def test_a_bad_demonstration_is_named_by_line_field_and_rule(record, message):
    assert f"a.jsonl:2: {message}" in error_of(ROWS[0], record)


def test_a_prompt_keeps_the_other_fields_of_its_record_as_meta():
    (prompt,) = prompts({"prompt": "A?", "answer": "72", "meta": {"topic": "sums"}})
    assert prompt.messages == ({"role": "user", "content": "A?"},)
    assert prompt.meta == {"answer": "72", "topic": "sums"}


@pytest.mark.parametrize(
    "record, message",
    [
        ({"prompt": talk("A", "b")}, "p.jsonl:1: field 'prompt' must end with a user turn, not with an answer"),
        ({"question": "A"}, "p.jsonl:1: field 'prompt' is missing (found: question). Map it with +data.fields.prompt="),
        ({"prompt": "A", "meta": 3}, "p.jsonl:1: field 'meta' must be an object, not a number"),
    ],
)
def test_a_bad_prompt_is_named_by_line_field_and_rule(record, message):
    with pytest.raises(UserError) as caught:
        prompts(record)
    assert message in str(caught.value)


# Human/Assistant transcripts


def test_a_transcript_becomes_messages():
    text = "\n\nHuman: Hello there.\nHow are you?\n\nAssistant: Fine.\n\nHuman: Good.\n\nAssistant: Bye."
    assert parse_hh(text) == talk("Hello there.\nHow are you?", "Fine.", "Good.", "Bye.")


def test_an_empty_last_assistant_turn_is_where_the_answer_is_to_come():
    assert parse_hh("\n\nHuman: Hello.\n\nAssistant:") == talk("Hello.")
    (record,) = demonstrations({"prompt": "\n\nHuman: Hello.\n\nAssistant:", "completion": "Hi."})
    assert list(record.messages) == talk("Hello.", "Hi.")


def test_a_text_that_only_mentions_the_words_is_one_user_message():
    for text in ("Who is Human: or Assistant: here?", "Human: a word", "Read this.\n\nHuman: Hello."):
        assert parse_hh(text) == [{"role": "user", "content": text}]


def test_a_transcript_in_which_somebody_speaks_twice_is_refused():
    assert "user and assistant must take turns" in error_of({"prompt": "\n\nHuman: A\n\nHuman: B", "completion": "c"})


# Skipping


def test_skip_counts_bad_records_by_rule_and_names_the_first_five():
    report = DataReport()
    bad = [{"prompt": "A"}] * 7 + ["{", {"prompt": "A", "completion": ""}]
    records = demonstrations(*bad, *ROWS, on_error=OnError.skip, report=report)
    assert len(records) == 40
    assert report.as_dict()["skipped"] == [
        {"rule": "field 'completion' is missing", "count": 7, "places": [f"a.jsonl:{i}" for i in range(1, 6)]},
        {"rule": "not valid JSON", "count": 1, "places": ["a.jsonl:8"]},
        {"rule": "an answer is empty", "count": 1, "places": ["a.jsonl:9"]},
    ]
    missing = "a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4, a.jsonl:5, ..."
    assert f"skipped: field 'completion' is missing: 7 ({missing})" in report.lines()


def test_skip_also_counts_what_a_parser_of_another_module_refuses():
    def parse(row):
        raise UserError(f"{row.where}: ranks are wrong") if row.values["n"] else UserError("never")

    write("a.jsonl", {"n": 1})
    report = DataReport()
    with pytest.raises(UserError, match="all 1 records are bad"):
        list(read_rows("a.jsonl", "skip", report, parse=parse))
    assert report.findings("skipped")[0]["rule"] == "ranks are wrong"


def test_a_source_of_bad_records_only_is_an_error_even_with_skip():
    message = error_of({"prompt": "A"}, "{", on_error=OnError.skip)
    assert message.startswith(
        "data.demonstrations=a.jsonl: all 2 records are bad. The first: a.jsonl:1: field 'completion'"
    )


# Keys and splits


def test_prompt_key_is_the_sha256_of_the_dialogue_with_case_and_white_space_folded():
    expected = "ab0f03febb4eeee6389b0024bae4bca96231259dbb1e078681c53c1572af3e03"  # of [["user", "hello world"]]
    assert prompt_key([{"role": "user", "content": " Hello\n  WORLD "}]) == expected
    assert prompt_key([{"role": "assistant", "content": "hello world"}]) != expected


def test_a_string_prompt_a_transcript_and_messages_have_the_same_key():
    records = [{"prompt": "Hello."}, {"prompt": "\n\nHuman: hello.\n\nAssistant:"}, {"messages": talk("Hello.")}]
    assert len({prompt.key for prompt in prompts(*records)}) == 1
    (record,) = demonstrations({"prompt": "Hello.", "completion": "Hi."})
    assert record.key == prompts(records[0])[0].key


def test_group_overrides_the_key():
    one, two = prompts({"prompt": "A", "group": 7}, {"prompt": "B", "group": "7"})
    expected = "daee236667ba88a40539cf6d8e513969374bd07a2372a75ba15994f6772c114e"  # of "group 7"
    assert one.key == two.key == expected


def test_splits_do_not_change_from_version_to_version():
    # sha256("split <key>") begins 0aa2 (0.042), 1912 (0.098), 1b02 (0.106), 1c2e (0.110), 26e9 (0.152), ea2f (0.915)
    splits = {key: split_of(key, valid_share=0.05, test_share=0.1) for key in "kniamb"}
    assert splits == {"k": "test", "n": "test", "i": "valid", "a": "valid", "m": "train", "b": "train"}


def test_split_sizes_follow_the_shares():
    splits = [split_of(str(i), 0.05, 0.1) for i in range(4000)]
    # 4 standard deviations of a binomial: 4 * sqrt(4000 * 0.1 * 0.9) = 76 and 4 * sqrt(4000 * 0.05 * 0.95) = 55
    assert abs(splits.count("test") - 400) < 76
    assert abs(splits.count("valid") - 200) < 55


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.text("ab C\n", min_size=1).filter(str.strip), min_size=1, max_size=30),
    shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.4)),
    seed=st.integers(0, 9),
)
def test_no_key_is_in_two_splits_whatever_the_order_and_the_source(words, shares, seed):
    records = [{"prompt": word, "completion": str(i)} for i, word in enumerate(words)]
    shuffled = random.Random(seed).sample(records, len(records))
    write("one.jsonl", *records, *({"prompt": f"filler {i}", "completion": "x"} for i in range(40)))
    write("two.jsonl", *shuffled, *({"prompt": f"filler {i}", "completion": "y"} for i in range(40)))
    config = data_config(demonstrations=["one.jsonl", "two.jsonl"], valid_share=shares[0], test_share=shares[1])
    splits = load_demonstrations(config, DataReport())
    keys = {name: {record.key for record in records} for name, records in splits.items()}
    assert sum(map(len, keys.values())) == len(set().union(*keys.values()))
    assert sum(map(len, splits.values())) == 2 * (len(words) + 40)


def test_an_empty_train_split_is_refused_with_the_counts_and_a_remedy():
    message = error_of(*ROWS[:3], test_share=1.0)
    assert message == (
        "data.demonstrations: the train split is empty (train 0, valid 0, test 3); lower data.valid_share and "
        "data.test_share, or give records of more prompts"
    )


def test_require_split_refuses_an_empty_valid_split():
    splits = {"train": [1, 2], "valid": [], "test": [3]}
    require_split(splits, "test", "data.rankings")
    with pytest.raises(
        UserError, match=r"data.rankings: the valid split is empty \(train 2, valid 0, test 1\); raise data"
    ):
        require_split(splits, "valid", "data.rankings")


# Held-out prompts and leakage


def test_heldout_is_the_test_split_and_the_hashed_one_is_unused_and_reported():
    write("p.jsonl", *({"prompt": f"prompt {i}"} for i in range(200)))
    write("h.jsonl", {"prompt": "held out"})
    report = DataReport()
    splits = load_prompts(data_config(prompts="p.jsonl", heldout="h.jsonl", test_share=0.2), report)
    assert [prompt.where for prompt in splits["test"]] == ["h.jsonl:1"]
    assert len(splits["train"]) + report.as_dict()["unused"]["count"] == 200
    assert report.as_dict()["splits"]["prompts"] == {"train": len(splits["train"]), "valid": 0, "test": 1}


def test_a_held_out_prompt_among_the_training_prompts_is_refused():
    write("p.jsonl", {"prompt": "A"}, {"prompt": "B"})
    write("h.jsonl", {"prompt": "C"}, {"prompt": " b"})
    with pytest.raises(UserError) as caught:
        load_prompts(data_config(prompts="p.jsonl", heldout="h.jsonl"), DataReport())
    assert str(caught.value).startswith("1 held-out prompts are in the training data of ppo (e.g. h.jsonl:2). Remove")


def test_leakage_is_found_between_stages_and_through_groups():
    test = prompt_keys(prompts({"prompt": "A", "group": "g"}, {"prompt": "B"}, {"prompt": "C"}))
    train = prompt_keys(demonstrations({"prompt": "A", "completion": "x"}, {"messages": talk("b", "y")}))
    with pytest.raises(UserError, match=r"2 held-out prompts are in the training data of sft \(e.g. p.jsonl:1\)"):
        check_leakage(test, train, "sft")
    check_leakage(test, {"another key"}, "sft")


# Mixtures


def test_sources_are_a_path_a_list_or_a_list_with_weights():
    assert parse_sources("a", "data.prompts") == [Source("a", 1.0)]
    assert parse_sources(["a", {"path": "b", "weight": 2}], "data.prompts") == [Source("a", 1.0), Source("b", 2.0)]
    config = OmegaConf.create([{"path": "b", "weight": 0.5}, "c"])
    assert parse_sources(config, "data.prompts") == [Source("b", 0.5), Source("c", 1.0)]


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "data.prompts is not set"),
        ([], "data.prompts is not set"),
        (["a", "a"], "data.prompts names a twice; give it once, as {path: a, weight: 2}"),
        ([{"path": "a", "wieght": 2}], "data.prompts: {'path': 'a', 'wieght': 2} is not a source"),
        ([3], "data.prompts: 3 is not a source"),
        *(
            (
                [{"path": "a", "weight": weight}],
                f"data.prompts: the weight of a is {weight!r}, must be over 0 and up to 100",
            )
            for weight in (0, -1, float("nan"), float("inf"), 101, "2", True)
        ),
    ],
)
def test_what_is_not_a_source_is_refused_naming_the_key(value, message):
    with pytest.raises(UserError) as caught:
        parse_sources(value, "data.prompts")
    assert message in str(caught.value)


def test_weight_is_the_passes_per_epoch():
    # sha256("weight <key>") begins b6 (0.71), f0 (0.94), 7e (0.49), 56 (0.34)
    assert [num_passes(key, 0.5) for key in "abcd"] == [0, 0, 1, 1]
    assert [num_passes(key, 1.0) for key in "abcd"] == [1, 1, 1, 1]
    assert [num_passes(key, 2.8) for key in "abcd"] == [3, 2, 3, 3]


def test_weights_repeat_and_thin_the_training_records_only():
    write("one.jsonl", *({"prompt": f"one {i}", "completion": "x"} for i in range(400)))
    write("two.jsonl", *({"prompt": f"two {i}", "completion": "x"} for i in range(400)))

    def load(weights):
        sources = [{"path": f"{name}.jsonl", "weight": w} for name, w in zip(("one", "two"), weights, strict=True)]
        return load_demonstrations(data_config(demonstrations=sources, test_share=0.25), DataReport())

    plain, mixed = load((1, 1)), load((2, 0.5))
    assert mixed["test"] == plain["test"]
    counts = {name: [r.where.startswith(name) for r in mixed["train"]].count(True) for name in ("one", "two")}
    ones, twos = ([r.where.startswith(name) for r in plain["train"]].count(True) for name in ("one", "two"))
    assert counts["one"] == 2 * ones
    assert abs(counts["two"] - twos / 2) < 4 * (twos / 4) ** 0.5  # 4 standard deviations of a binomial
    assert load((2, 0.5))["train"] == mixed["train"]


# The report


def test_the_report_gives_each_source_with_its_records_and_hash():
    write("a.jsonl", {"text": "one"})
    report = DataReport()
    load_demonstrations(data_config(demonstrations="a.jsonl"), report)
    sha256 = "d0c87fa3d5b4e12b921f70a3abdd2c40f350e2b1df848fb32d0be45aabaaf3b6"  # sha256sum a.jsonl
    assert report.sources() == [{"path": "a.jsonl", "records": 1, "sha256": sha256}]
    assert source_sha256("a.jsonl", "data.demonstrations") == sha256


def test_the_hash_of_a_folder_changes_with_a_byte_or_a_name(tmp_path):
    (tmp_path / "many").mkdir()
    write("many/a.jsonl", {"text": "one"})
    write("many/b.jsonl", {"text": "two"})
    digests = [hashlib.sha256((tmp_path / "many" / name).read_bytes()).hexdigest() for name in ("a.jsonl", "b.jsonl")]
    listing = f"a.jsonl {digests[0]}\nb.jsonl {digests[1]}\n"
    assert source_sha256("many", "data.prompts") == hashlib.sha256(listing.encode()).hexdigest()


def test_exact_duplicates_are_counted_per_source_and_kept():
    write("one.jsonl", {"prompt": "A", "completion": "x"}, {"prompt": "a ", "completion": "x"})
    write(
        "two.jsonl",
        {"prompt": "A", "completion": "y"},
        {"prompt": "A", "completion": "x"},
        {"text": "t"},
        {"text": "t"},
    )
    report = DataReport()
    splits = load_demonstrations(data_config(demonstrations=["one.jsonl", "two.jsonl"]), report)
    assert [source["duplicates"] for source in report.as_dict()["sources"]] == [1, 2]
    assert len(splits["train"]) == 6


def test_token_lengths_are_summed_up_by_nearest_rank():
    report = DataReport()
    report.count_tokens("prompts", "train", list(range(20, 0, -1)))
    report.count_tokens("prompts", "valid", [])
    figures = {"count": 20, "min": 1, "median": 10, "p95": 19, "max": 20}
    nothing = {"count": 0, "min": None, "median": None, "p95": None, "max": None}
    assert report.as_dict()["tokens"] == {"prompts": {"train": figures, "valid": nothing}}


def test_over_long_and_cut_and_contradictory_items_are_counted_with_their_places():
    report = DataReport()
    report.over_long("a.jsonl:3", 900, 48)
    report.cut("p.jsonl:7", 60, 48)
    for i in range(6):
        report.find("contradictions", f"r.jsonl:{i}")
    found = report.as_dict()
    assert found["over_long"] == {"count": 1, "places": ["a.jsonl:3 (900 tokens, limit 48)"]}
    assert found["cut"] == {"count": 1, "places": ["p.jsonl:7 (60 tokens, limit 48)"]}
    assert (found["contradictions"]["count"], len(found["contradictions"]["places"])) == (6, 5)


@pytest.mark.parametrize(("left_out", "warned"), [(0, False), (2, False), (3, True)])
def test_more_than_a_tenth_of_the_answers_left_out_for_length_is_a_warning(left_out, warned):
    report = DataReport()
    report.see_answers(20)
    for i in range(left_out):
        report.over_long(f"a.jsonl:{i}", 900, 48)
    warnings = [line for line in report.lines() if line.startswith("warning: ")]
    assert len(warnings) == warned
    assert all(line.startswith("warning: 3 of 20 answers (15 %) are over the token limit") for line in warnings)


def test_the_report_is_json_and_an_aligned_table():
    report = DataReport()
    demonstrations(*ROWS, ROWS[0], report=report)
    report.count_tokens("demonstrations", "train", [3, 5])
    json.dumps(report.as_dict(), allow_nan=False)
    assert report.lines() == [
        "source             kind  weight  records  skipped  duplicates",
        "a.jsonl  demonstrations       1       41        0           1",
        "split           train  valid  test",
        "demonstrations     41      0     0",
        "tokens                count  min  median  p95  max",
        "demonstrations train      2    3       3    5    5",
    ]


@pytest.mark.slow
def test_twenty_thousand_short_records_load_within_five_seconds_of_computing():
    start = time.process_time()
    assert len(demonstrations(*({"prompt": f"What is {i}?", "completion": str(i)} for i in range(20_000)))) == 20_000
    assert time.process_time() - start < 5  # about 0.4 s on a laptop


def test_a_prompt_that_comes_twice_is_evaluated_once():
    prompts = [Prompt(({"role": "user", "content": text},), text, text) for text in ("a", "b", "A ", "c")]
    assert [prompt.where for prompt in distinct(prompts, 3)] == ["A ", "b", "c"]
    assert len(distinct(prompts, 2)) == 2

"""What the columns of public data sets are read as, what is said about it, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.config.schema import DataConfig, OnError, SftObjective
from rlhf.data.load import DataReport, load_demonstrations, load_prompts, parse_sources
from rlhf.data.sources import source_sha256
from rlhf.errors import UserError
from rlhf.training.sft import learned_text, rehearsal, sft_examples

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be brief."}
TURN = [USER, ANSWER]
HH = {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}


@pytest.fixture(autouse=True)
def start_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(kind, *records, report=None, **changed):
    Path("a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = dict(demonstrations=None, prompts=None, heldout=None, fields={}, valid_share=0.0, test_share=0.0)
    config |= {"on_error": OnError.error, kind: "a.jsonl", **changed}
    loader = load_demonstrations if kind == "demonstrations" else load_prompts
    return loader(SimpleNamespace(**config), report or DataReport())["train"]


def says(role, content):
    return {"role": role, "content": content}


def part(kind, value):
    return {"type": kind, kind: value}


def learned(record, **changed):
    """The messages of a demonstration."""
    return list(load("demonstrations", record, **changed)[0].messages)


def asked(record, **changed):
    """The messages of a prompt."""
    return list(load("prompts", record, **changed)[0].messages)


def lines_of(record, kind="demonstrations", **changed):
    report = DataReport()
    load(kind, *([record] * 3), report=report, **changed)
    return report.lines()


def error_of(record, kind="demonstrations", **changed):
    with pytest.raises(UserError) as caught:
        load(kind, record, **changed)
    assert str(caught.value).isprintable()
    return str(caught.value)


# Columns


@pytest.mark.parametrize(
    "record, prompt",
    [
        ({"instruction": "Why?", "output": "So."}, "Why?"),
        ({"instruction": "Why?", "input": "", "output": "So."}, "Why?"),
        ({"instruction": "Why?", "input": "It rains.", "output": "So."}, "Why?\n\nIt rains."),
        ({"instruction": "Why?", "context": "It rains.", "response": "So.", "category": "qa"}, "Why?\n\nIt rains."),
        ({"prompt": "Why?", "input": "It rains.", "completion": "So."}, "Why?"),
    ],
)
def test_an_instruction_is_read_with_its_input_below(record, prompt):
    assert learned(record) == [{"role": "user", "content": prompt}, ANSWER]
    assert asked(record) == [{"role": "user", "content": prompt}]


def test_an_input_is_read_with_an_instruction_that_is_mapped_and_with_any_prompt_where_it_is_mapped_itself():
    alpaca = {"instruction": "Why?", "input": "It rains.", "output": "So."}
    expected = [{"role": "user", "content": "Why?\n\nIt rains."}, ANSWER]
    assert learned(alpaca, fields={"prompt": "instruction", "completion": "output"}) == expected
    quiz = {"question": "Why?", "passage": "It rains.", "answer": "So."}
    assert learned(quiz, fields={"prompt": "question", "input": "passage", "completion": "answer"}) == expected


def test_what_is_read_by_a_common_name_and_what_is_not_used_stands_in_the_report():
    record = {"instruction": "Why?", "input": "It rains.", "output": "So.", "system": "Be brief.", "images": ["a.png"]}
    assert "a.jsonl as demonstrations: fields not used: images (3)" in lines_of({**record, "source": None, "tools": []})
    places = "3 (a.jsonl:1, a.jsonl:2, a.jsonl:3)"
    assert {line for line in lines_of(record) if places in line} == {
        f"column 'instruction' read as 'prompt': {places}",
        f"column 'output' read as 'completion': {places}",
        f"column 'input' read as the end of the prompt: {places}",
        f"field 'system' read as the system turn: {places}",
    }


def test_fields_of_a_prompt_that_no_stage_reads_are_said_to_be_for_rules():
    lines = lines_of({"prompt": "A", "answer": "7"}, "prompts")
    assert "a.jsonl as prompts: other fields, for rules: answer (3)" in lines


def test_two_columns_that_could_be_one_field_are_refused_and_one_can_be_left_out():
    record = {"prompt": "### Why?", "instruction": "Why?", "output": "So."}
    message = "a.jsonl:1: 'prompt' and 'instruction' could both be field 'prompt'. Leave one out, e.g. +data.fields."
    assert error_of(record).startswith(message)
    assert learned(record, fields={"prompt": "instruction"}) == TURN
    assert learned({**record, "prompt": "Why?"}) == TURN
    assert learned({**record, "instruction": "How?", "prompt": "Why?"}, fields={"instruction": None}) == TURN
    assert "'response' and 'output' could both" in error_of({"prompt": "Why?", "response": "a", "output": "b"})


def test_a_foreign_column_named_like_ours_is_left_out_by_mapping_it_to_null():
    record = {"prompt": "Why?", "completion": "So.", "group": ["a"]}
    assert error_of(record).endswith("If it is something else, leave it out with +data.fields.group=null")
    assert learned(record, fields={"group": None}) == TURN


def test_a_group_that_is_a_fraction_is_told_as_one_and_an_empty_one_is_none():
    record = {"prompt": "Why?", "completion": "So."}
    assert "a name or a whole number, not 1.5." in error_of({**record, "group": 1.5})
    keys = {load("demonstrations", {**record, **group})[0].key for group in ({}, {"group": ""}, {"group": " "})}
    assert len(keys) == 1


def test_an_object_around_all_records_is_told_as_one_with_what_takes_them_out():
    error = error_of({"data": [{"prompt": "Why?", "completion": "So."}]})
    assert error.endswith("If the records are the list in it, write them one a line: jq -c '.[][]' FILE")
    assert "jq" not in error_of({"dialogue": TURN})


def test_a_column_of_our_name_that_is_mapped_to_another_field_is_that_alone():
    assert asked({"history": "Why?", "labels": 1}, fields={"prompt": "history"}) == [USER]


def test_each_source_may_have_its_own_mapping():
    Path("b.jsonl").write_text(json.dumps({"q": "Why?", "completion": "So.", "group": {}}) + "\n")
    Path("c.jsonl").write_text(json.dumps({"prompt": "Why?", "r": "So.", "q": "no prompt"}) + "\n")
    sources = [{"path": "b.jsonl", "fields": {"prompt": "q", "group": None}}, {"path": "c.jsonl", "weight": 2}]
    records = load("demonstrations", demonstrations=sources, fields={"completion": "r"})
    assert [list(record.messages) for record in records] == [TURN] * 3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"promt": "q"}, "data.prompts: the fields of a.promt: 'promt' is not a field of ours; map one of prompt, "),
        (
            {"prompt": 3},
            "data.prompts: the fields of a are {'prompt': 3}, must be our names and theirs",
        ),
        ("q", "data.prompts: the fields of a are 'q', must be our names and theirs, or null to ignore"),
    ],
)
def test_a_bad_mapping_of_a_source_is_refused_naming_the_key(fields, message):
    with pytest.raises(UserError) as caught:
        parse_sources([{"path": "a", "fields": fields}], "data.prompts")
    assert str(caught.value).startswith(message)


def test_the_remedy_for_a_missing_field_offers_a_likely_column_or_none():
    assert error_of({"Prompt": "A", "completion": "b"}).endswith("Map it with +data.fields.prompt=Prompt")
    assert error_of({"prompt": "A", "chosen": "b"}).endswith("Map it with +data.fields.completion=chosen")
    assert error_of({"label": [1], "title": "A"}).endswith("Map it with +data.fields.prompt=<your name for it>")
    assert error_of({" Prompt ": "A"}).endswith("Map it with \"+data.fields.prompt=' Prompt '\"")


def test_a_table_holds_lists_as_json_and_a_group_as_text():
    Path("a.csv").write_text('prompt,completion,history,group\nWhy?,So.,"[[""Hi"", ""Hello""]]",007\nWhy?,So.,,\n')
    first, second = load("demonstrations", demonstrations="a.csv")
    assert [message["content"] for message in first.messages] == ["Hi", "Hello", "Why?", "So."]
    assert list(second.messages) == TURN
    Path("a.csv").write_text("prompt,completion,history\nWhy?,So.,\"['Hi', 'Hello']\"\n")
    with pytest.raises(UserError, match=r"a.csv:2: field 'history' is .*; in a table, what is no text is written"):
        load("demonstrations", demonstrations="a.csv")


def test_a_foreign_column_of_a_table_that_the_stage_does_not_read_needs_not_be_json():
    Path("a.csv").write_text("prompt,completion,weight\nWhy?,So.,heavy\n")
    assert list(load("demonstrations", demonstrations="a.csv")[0].messages) == TURN


def test_a_group_that_a_table_gave_as_a_float_is_that_whole_number():
    keys = {load("prompts", {"prompt": text, "group": group})[0].key for text, group in (("A", 3), ("B", 3.0))}
    assert len(keys) == 1


# Dialogues


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"conversations": [{"from": "human", "value": "Why?", "role": None}, {"from": "gpt", "value": "So."}]},
        {"conversation": TURN, "conversation_id": "7"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]},
                ANSWER,
            ]
        },
        {"messages": [{"role": "system", "content": ""}, *TURN]},
        {"messages": [{"role": "system", "content": None}, *TURN]},
        {"conversations": [{"from": "system", "value": " "}, *TURN]},
        {"messages": TURN, "prompt": "Why?", "system": " "},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "Why?", "completion": ANSWER},
        {"prompt": "Why?", "completion": [{"from": "gpt", "value": "So."}]},
        {"prompt": "Why?", "completion": "So.", "history": [], "system": None},
        {"prompt": "\r\n\r\nHuman: Why?\r\n\r\nAssistant:", "completion": "So."},
        {"prompt": "\nHuman: Why?\n\nAssistant:", "completion": "So."},
        {"prompt": "Why?", "completion": "So.", "label": True},
    ],
)
def test_each_common_shape_is_the_same_dialogue(record):
    assert learned(record) == TURN


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [SYSTEM, *TURN]},
        {"messages": [{"role": "developer", "content": "Be brief."}, *TURN]},
        {"messages": TURN, "system": "Be brief."},
        {"messages": [SYSTEM, *TURN], "system": "Be brief."},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}], "system": "Be brief."},
        {"system_prompt": "Be brief.", "prompt": "Why?", "response": "So."},
        {"system": "Be brief.", "instruction": "Why?", "output": "So."},
        {"system": "Be brief.", "prompt": "Why?", "completion": [ANSWER]},
    ],
)
def test_a_system_text_is_the_system_turn_wherever_it_stands(record):
    assert learned(record) == [SYSTEM, *TURN]


@pytest.mark.parametrize("history", [[["Hi", "Hello"]], [says("user", "Hi"), says("assistant", "Hello")]])
def test_a_history_comes_before_the_prompt_and_after_the_system_turn(history):
    record = {"instruction": "Why?", "output": "So.", "history": history, "system": "Be brief."}
    assert [message["content"] for message in learned(record)] == ["Be brief.", "Hi", "Hello", "Why?", "So."]


@pytest.mark.parametrize(
    "record, messages",
    [
        (HH, [USER]),
        ({"chosen": TURN, "rejected": [USER, {"role": "assistant", "content": "No."}]}, [USER]),
        ({"prompt": "Why?", "chosen": TURN, "rejected": TURN, "messages": TURN}, [USER]),
        ({"prompt": "Why?", "messages": [*TURN, *TURN]}, [USER]),
        ({"messages": [*TURN, *TURN]}, [*TURN, USER]),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, [USER]),
        ({"system": "Be brief.", **HH}, [SYSTEM, USER]),
    ],
)
def test_what_was_answered_is_a_prompt_without_its_answer(record, messages):
    assert asked(record) == messages


def test_an_answer_of_weight_0_before_the_last_is_marked():
    messages = [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]
    (record,) = load("demonstrations", {"messages": messages, "system": "Be brief."})
    assert (record.not_learned, len(record.messages)) == ((-3,), 5)


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
            "field 'messages[1].tool_calls' is there; messages with 'tool_calls' are not learned here. Leave",
        ),
        (
            {"messages": [USER, {**ANSWER, "function_call": {"name": "f"}}]},
            "messages with 'function_call' are not learn",
        ),
        ({"messages": [USER, ANSWER, says("tool", "7")]}, "field 'messages[2].role' is 'tool', must be 'user'"),
        ({"conversations": [{"from": "observation", "value": "f"}]}, "field 'messages[0].role' is 'observation', must"),
        (
            {"messages": [{"role": "user", "content": [part("image_url", "a.png")]}, ANSWER]},
            "field 'messages[0].content[0]': a part of a message is image_url, and only text is learned here",
        ),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "the last answer has weight 0: it is not to be learned"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "the weight of a message is 0 or 1, not 0.5"),
        (
            {"prompt": "Why?", "completion": "So.", "label": False},
            "label is false: a bad answer (of a KTO set) is no demonstration. Skip these with",
        ),
        (
            {"prompt": "Why?", "completion": TURN},
            "field 'completion' is a list; an answer must be a string, or one message of the assistant",
        ),
        (
            {"prompt": "Why?", "completion": [USER]},
            "field 'completion' is a list; an answer must be a string, or one message of the assistant",
        ),
        ({"prompt": "Why?", "completion": USER}, "field 'completion' is an object; an answer must be a string, or one"),
        (
            {"prompt": "Why?", "completion": "So.", "history": "Hi"},
            "field 'history' must be a list of [question, answer], not a string. If it is something else, leave it out",
        ),
        ({"messages": [SYSTEM, *TURN], "system": "Be long."}, "field 'system' differs from the dialogue's system turn"),
    ],
)
def test_what_changes_the_meaning_of_a_record_is_refused_by_name(record, message):
    assert message in error_of(record)


def test_what_stands_beside_a_dialogue_and_says_something_else_is_in_the_report():
    beside = {"prompt": "other", "completion": "other", "history": [["a", "b"]]}
    lines = "\n".join(lines_of({"messages": [{**USER, "name": "Ann"}, ANSWER], **beside}))
    assert all(f"field '{name}' beside 'messages' not used: 3" in lines for name in beside)
    assert "field 'name' of messages not used: 3" in lines


def test_nulls_that_a_table_gives_each_message_are_nothing():
    message = {"tool_calls": None, "name": None, "weight": None, "images": []}
    assert learned({"messages": [{**USER, **message}, {**ANSWER, **message}]}) == TURN
    assert "messages not used" not in "\n".join(lines_of({"messages": [{**USER, **message}, {**ANSWER, **message}]}))


# Transcripts


@pytest.mark.parametrize(
    "text, mark",
    [
        ("### Human: Why?\n### Assistant:", "### Human"),
        ("### Human: Why?### Assistant: So.### Human: How?", "### Human"),
        ("Below is an instruction.\n\n### Instruction:\nWhy?\n\n### Response:\n", "### Instruction"),
        ("Human: Why?\nAssistant:", "Human:"),
        ("User: Why?\n\nAssistant: So.\n\nUser: How?", "User:"),
        ("**User:** Why?\n**Assistant:** So.", "**User:"),
        ("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>"),
        ("<start_of_turn>user\nWhy?<end_of_turn>", "<start_of_turn>"),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?", "<|begin_of_text|><|start_header_id|>"),
        ("<|system|>\nBe brief.</s>\n<|user|>\nWhy?</s>", "<|system|>"),
        ("<s>[INST] Why? [/INST]", "<s>[INST]"),
        ("[{'role': 'user', 'content': 'Why?'}]", "[{'role':"),
    ],
)
def test_a_transcript_with_marks_that_are_not_read_is_never_one_user_turn(text, mark):
    for record, kind in (({"prompt": text, "completion": "So."}, "demonstrations"), ({"prompt": text}, "prompts")):
        message = error_of(record, kind)
        assert f"a transcript with turn marks that are not read ({mark}); give messages" in message


@pytest.mark.parametrize(
    "text",
    [
        "Who is the user: a human or an assistant?",
        "User: who is that?",
        "# Human rights\n## Response of the state",
        "Q: Why?\nA: So.\nQ: How?\nA:",
        "Explain what <|im_start|> is.",
        "[1, 2] is a list. What is [{}]?",
        "Write a dialogue.\nUser: Hi\nAssistant: Hello",
    ],
)
def test_a_text_that_only_mentions_such_marks_is_one_user_turn(text):
    assert asked({"prompt": text}) == [{"role": "user", "content": text}]


def test_a_text_that_only_looks_like_a_transcript_can_be_given_as_a_message():
    text = "Human: Why?\nAssistant:"
    assert asked({"prompt": [{"role": "user", "content": text}]}) == [{"role": "user", "content": text}]


def test_pairs_of_such_transcripts_are_refused_by_their_marks():
    pair = {name: f"### Human: Why?\n### Assistant: {name}" for name in ("chosen", "rejected")}
    assert "field 'chosen' is a transcript with turn marks that are not read (### Human)" in error_of(pair, "prompts")


def test_two_texts_that_share_their_first_words_hold_no_prompt():
    message = error_of({"chosen": "Why? So.", "rejected": "Why? No.", "question": "Why?"}, "prompts")
    assert message.endswith("(found: chosen, rejected, question). Map it with +data.fields.prompt=question")


# What is learned


def test_rehearsed_data_is_read_with_the_names_that_its_fields_had_then():
    Path("b.jsonl").write_text(json.dumps({"q": "Why?", "a": "So.", "group": []}) + "\n")
    sources = [{"path": "b.jsonl", "fields": {"group": None}}]
    earlier = {
        "data": [{"path": "b.jsonl", "sha256": source_sha256("b.jsonl", "data")}],
        "config": {"data.demonstrations": sources, "data.fields.prompt": "q", "data.fields.completion": "a"},
    }
    data = DataConfig("a.jsonl", fields={"prompt": "other"}, on_error=OnError.error, valid_share=0.0, test_share=0.0)
    (record,) = rehearsal(data, 0.5, earlier, 1, DataReport(), 0)
    assert list(record.messages) == TURN


def test_an_answer_of_weight_0_is_context_and_not_learned(tokenizer):
    messages = [USER, {**ANSWER, "weight": 0}, USER, {"role": "assistant", "content": "Yes."}]
    (record,) = load("demonstrations", {"messages": messages})
    data = SimpleNamespace(max_prompt_tokens=99, max_response_tokens=99, long_prompts=None, on_error=OnError.error)
    (example,) = sft_examples(tokenizer, [record], SftObjective.assistant, data, "train", DataReport())
    shown = learned_text(tokenizer, **example)
    assert shown.count("[[") == 1 and "[[Yes." in shown and "So." in shown


def test_objective_text_says_of_a_dialogue_with_a_text_how_its_text_can_be_learned(tokenizer):
    record = {"prompt": "Why?", "completion": "So.", "text": "Why? So."}
    data = SimpleNamespace(max_prompt_tokens=99, max_response_tokens=99, long_prompts=None, on_error=OnError.error)
    with pytest.raises(UserError, match=r"a.jsonl:1: sft.objective=text learns .* \+data.fields.prompt=null"):
        sft_examples(tokenizer, load("demonstrations", record), SftObjective.text, data, "train", DataReport())
    assert load("demonstrations", record, fields={"prompt": None})[0].text == "Why? So."
    assert "field 'text' beside a dialogue not used: 3" in "\n".join(lines_of(record))

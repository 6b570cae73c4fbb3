"""Rankings out to other tools and in from them: each format by a file written by hand, and there and back again."""

import csv
import io
import itertools
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.collect import formats
from reward.collect.formats.canonical import competition
from reward.collect.formats.rows import ImportRow
from reward.collect.formats.spreadsheet import safe, unprotected
from reward.collect.refusals import Conflict, Refusal
from reward.rankings import load_rankings, parse_ranking
from rlhf.data.load import parse_demonstration
from rlhf.data.report import DataReport
from rlhf.errors import ArtifactError, UserError

QUICK = settings(derandomize=True, max_examples=30, deadline=None)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
DIALOGUE = [user("Hi"), assistant("Hello"), user("Why?")]
ROW = {
    "prompt": [user("Why?")],
    "responses": ["A", "B", "C"],
    "ranks": [2, 1, 2],
    "annotator": "anon-1",
    "prompt_id": "p1",
    "meta": {"item_id": "i1"},
}


def exported(name, rows, **options):
    """The bytes of rows in a format."""
    stream = io.BytesIO()
    formats.write(name, rows, stream, **options)
    return stream.getvalue()


def records(name, rows, **options):
    """What the lines of a JSONL format hold."""
    return [json.loads(line) for line in exported(name, rows, **options).splitlines()]


def imported(tmp_path, name, content, suffix=".jsonl"):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return list(formats.read(name, path))


def told(tmp_path, name, content, suffix=".jsonl"):
    """The message that a bad file gets, less its folder."""
    with pytest.raises((UserError, ArtifactError)) as error:
        imported(tmp_path, name, content, suffix)
    return str(error.value).replace(f"{tmp_path}/", "")


# Files written by hand


def test_canonical_rows_are_json_lines_as_they_are():
    row = {"prompt": [user("Größe?")], "responses": ["=1", "B"], "ranks": [1, None], "meta": {"x": [1]}}
    assert exported("canonical", [row]).decode() == (
        '{"prompt": [{"role": "user", "content": "Größe?"}], "responses": ["=1", "B"], "ranks": [1, null], '
        '"meta": {"x": [1]}}\n'
    )


def test_the_reward_stage_reads_canonical_rows():
    ranking = parse_ranking(ImportRow(ROW, "file:1"))
    assert ranking.messages == (user("Why?"),)
    assert (ranking.responses, ranking.ranks) == (("A", "B", "C"), (2, 1, 2))
    assert (ranking.annotator, ranking.prompt_id) == ("anon-1", "p1")


def test_ranks_become_competition_ranks():
    assert competition([7, 3, 3, None, 9]) == [3, 1, 1, None, 4]


def test_trl_pairs_have_an_explicit_prompt_and_answers_as_messages():
    rest = {"annotator": "anon-1", "item_id": "i1", "p_chosen": 1.0, "pair_weight": 0.5, "prompt_id": "p1"}
    assert records("trl", [ROW]) == [
        {"prompt": [user("Why?")], "chosen": [assistant("B")], "rejected": [assistant("A")], "rank_gap": 1, **rest},
        {"prompt": [user("Why?")], "chosen": [assistant("B")], "rejected": [assistant("C")], "rank_gap": 1, **rest},
    ]


def test_trl_pairs_with_an_implicit_prompt_repeat_it():
    first = records("trl_implicit", [ROW])[0]
    assert first["chosen"] == [user("Why?"), assistant("B")]
    assert first["rejected"] == [user("Why?"), assistant("A")]
    assert "prompt" not in first


def test_trl_text_goes_on_where_the_prompt_ends():
    first = records("trl", [{**ROW, "prompt": DIALOGUE}], style="text")[0]
    assert first["prompt"] == "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    assert (first["chosen"], first["rejected"]) == (" B", " A")


@pytest.mark.parametrize(
    ("strategy", "pairs"),
    [  # of a=1, b=2, c=2, d=4, e not ranked
        ("all", ["ab", "ac", "ad", "bd", "cd"]),
        ("adjacent", ["ab", "ac", "bd", "cd"]),
        ("best_vs_rest", ["ab", "ac", "ad"]),
        ("best_vs_worst", ["ad"]),
    ],
)
def test_a_strategy_says_which_pairs_are_taken(strategy, pairs):
    row = {"prompt": [user("Why?")], "responses": list("abcde"), "ranks": [1, 2, 2, 4, None]}
    found = records("trl_implicit", [row], strategy=strategy)
    assert sorted(pair["chosen"][1]["content"] + pair["rejected"][1]["content"] for pair in found) == pairs
    assert {pair["pair_weight"] for pair in found} == {1 / len(pairs)}


def test_a_soft_tie_is_a_pair_of_no_gap_and_half_the_votes():
    tie = records("trl", [ROW], ties="soft")[-1]
    assert (tie["chosen"], tie["rejected"]) == ([assistant("A")], [assistant("C")])
    assert (tie["rank_gap"], tie["p_chosen"]) == (0, 0.5)


def test_p_chosen_is_the_share_of_the_annotators_votes():
    all_ranks = ([1, 2, 3], [1, 1, 3], [2, 1, None])
    rows = [{**ROW, "ranks": ranks, "annotator": str(i)} for i, ranks in enumerate(all_ranks)]
    pairs = {(pair["annotator"], pair["chosen"][0]["content"], pair["rejected"][0]["content"]): pair["p_chosen"]
             for pair in records("trl", rows)}  # fmt: skip
    assert pairs["0", "A", "B"] == 0.5  # for, a tie, against
    assert pairs["2", "B", "A"] == 0.5
    assert pairs["0", "A", "C"] == pairs["1", "A", "C"] == 1.0  # of the two who ranked C


def test_margin_is_a_column_where_every_row_has_one():
    assert [pair["margin"] for pair in records("trl", [{**ROW, "margin": 0.5}])] == [0.5, 0.5]
    assert not any("margin" in pair for pair in records("trl", [{**ROW, "margin": 0.5}, ROW]))


def test_soft_ties_need_all_pairs():
    with pytest.raises(Refusal, match="ties=soft with strategy=adjacent"):
        exported("trl", [ROW], strategy="adjacent", ties="soft")


def test_hh_dialogues_are_transcripts_to_their_end():
    assert records("hh", [{**ROW, "prompt": DIALOGUE}])[0] == {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: B",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: A",
    }


def test_a_row_that_a_format_cannot_hold_is_left_out_and_counted_and_the_others_are_written():
    stream = io.BytesIO()
    rows = [ROW, {**ROW, "prompt": [SYSTEM, user("Why?")]}, {**ROW, "ranks": [1, 1, 1]}, ROW]
    written = formats.write("hh", rows, stream)
    assert (written.records, written.left_out) == (4, {"with a system turn": 1, "with all answers tied": 1})
    assert len(stream.getvalue().splitlines()) == 4


KINDS = {  # kind of row -> the row
    "plain": ROW,
    "partly ranked": {**ROW, "ranks": [2, None, 1]},
    "a tie": {**ROW, "ranks": [1, 1, 3]},
    "all tied": {**ROW, "ranks": [1, 1, 1]},
    "a dialogue": {**ROW, "prompt": DIALOGUE},
    "a system turn": {**ROW, "prompt": [SYSTEM, user("Why?")]},
    "a prompt with a turn mark": {**ROW, "prompt": [user("Say\n\nAssistant: hi")]},
    "a dialogue with a turn mark": {**ROW, "prompt": [*DIALOGUE[:2], user("Say\n\nHuman: hi")]},
    "an answer with a turn mark": {**ROW, "responses": ["A", "B\n\nHuman: and then?", "C"]},
    "a prompt like another program's": {**ROW, "prompt": [user("### Instruction: a\n### Response: b")]},
    "several criteria": {**ROW, "meta": {"item_id": "i1", "ratings": {"kind": [1, 2, 3], "true": [3, 2, 1]}}},
    "unacceptable answers": {**ROW, "meta": {"item_id": "i1", "unacceptable": [0, 2]}},
    "a comment": {**ROW, "meta": {"item_id": "i1", "comment": "=B\n=C", "seconds": 3.5}},
}
TIED, SYSTEM_TURN, DIVIDED = (
    "with all answers tied",
    "with a system turn",
    "with a text that a transcript would divide",
)
NOT_HELD = {  # (format, its options) -> kind of row -> why it is left out; all others are held
    ("canonical", ""): {},
    ("parquet", ""): {},
    ("csv", ""): {},
    ("trl", ""): {"all tied": TIED},
    ("trl", "ties=soft"): {},
    ("trl", "style=text"): {
        "all tied": TIED,
        "a system turn": SYSTEM_TURN,
        "a prompt with a turn mark": DIVIDED,
        "a dialogue with a turn mark": DIVIDED,
        "an answer with a turn mark": DIVIDED,
    },
    ("trl_implicit", ""): {"all tied": TIED},
    ("hh", ""): {
        "all tied": TIED,
        "a system turn": SYSTEM_TURN,
        "a prompt with a turn mark": DIVIDED,
        "a dialogue with a turn mark": DIVIDED,
        "an answer with a turn mark": DIVIDED,
    },
    ("openai", ""): {
        "all tied": TIED,
        "a system turn": SYSTEM_TURN,
        "a dialogue with a turn mark": DIVIDED,
    },
    ("kto", ""): {"all tied": TIED},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "given"), NOT_HELD)
def test_what_each_format_holds_of_each_kind_of_row_and_what_comes_back(tmp_path, name, given, kind):
    options, row, why = dict([given.split("=")] if given else []), KINDS[kind], NOT_HELD[name, given].get(kind)
    path = tmp_path / f"file{formats.FORMATS[name].suffix}"
    if why:
        with pytest.raises(Refusal, match=f"format '{name}' can hold none of these rankings: 1 {why}"):
            formats.write(name, [row], path, **options)
        assert not path.exists()
        return
    assert formats.write(name, [row], path, **options).left_out == {}
    if name in formats.READERS:
        assert orders(formats.read(name, path)) == orders([row])


def orders(rows) -> set:
    """Every (prompt, better answer, worse answer) that rows say."""
    return {
        (json.dumps(row["prompt"]), row["responses"][i], row["responses"][j])
        for row in rows
        for i, j in itertools.permutations(range(len(row["ranks"])), 2)
        if None not in (row["ranks"][i], row["ranks"][j]) and row["ranks"][i] < row["ranks"][j]
    }


def test_a_version_s_report_counts_by_the_same_reasons():
    rows = KINDS.values()
    counted = Counter((name, why) for row in rows for name, why in formats.left_out_of_formats(row))
    by_hand = Counter((name, why) for (name, given), of in NOT_HELD.items() if not given for why in of.values())
    assert counted == by_hand


def test_openai_comparisons_name_the_better_of_two():
    row = {**ROW, "meta": {"item_id": "i1", "sources": [[{"policy": "sft"}], [{"policy": "ppo"}], []]}}
    assert records("openai", [row], batch="1")[0] == {
        "info": {"id": "p1", "post": "Why?", "title": None, "subreddit": None, "site": None, "article": None},
        "summaries": [{"text": "A", "policy": "sft", "note": None}, {"text": "B", "policy": "ppo", "note": None}],
        "choice": 1,
        "worker": "anon-1",
        "batch": "1",
        "split": "train",
        "extra": {"confidence": None, "item_id": "i1", "rank_gap": 1},
    }


def test_a_comparison_of_summarize_from_feedback_is_read(tmp_path):
    line = {
        "info": {"id": "t3_x", "post": "A long story.", "title": "Story", "subreddit": "tifu", "site": None},
        "summaries": [{"text": " Long.", "policy": "sup1", "note": ""}, {"text": " Short.", "policy": "ref"}],
        "choice": 1,
        "worker": "w1",
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": None},
    }
    assert imported(tmp_path, "openai", line) == [
        {
            "prompt": [user("A long story.")],
            "responses": [" Short.", " Long."],
            "ranks": [1, 2],
            "annotator": "w1",
            "prompt_id": "t3_x",
            "meta": {"sources": [[{"policy": "ref"}], [{"policy": "sup1"}]]},
        }
    ]


def kto_labels(row, **options):
    return [(one["completion"][0]["content"], one["label"]) for one in records("kto", [row], **options)]


def test_kto_labels_the_top_and_the_unacceptable():
    row = {**ROW, "responses": list("abcd"), "ranks": [1, 2, 3, 3], "meta": {"unacceptable": [3]}}
    assert kto_labels(row) == [("a", True), ("d", False)]
    assert kto_labels(row, negatives="last") == [("a", True), ("c", False), ("d", False)]
    unacceptable = {**ROW, "ranks": [1, 1, 1], "meta": {"unacceptable": [0, 1, 2]}}
    assert [one["label"] for one in records("kto", [unacceptable])] == [False] * 3


def test_sft_records_are_what_the_sft_stage_reads():
    row = {"prompt": DIALOGUE, "completion": "Because.", "annotator": "anon-1"}
    for style in ("completion", "messages"):
        (record,) = records("sft", [row], style=style)
        assert parse_demonstration(ImportRow(record, "file:1")).messages == (*DIALOGUE, assistant("Because."))


def test_csv_has_a_line_for_each_answer():
    meta = {"item_id": "i1", "display_order": [1, 0], "unacceptable": [0], "comment": "ok", "seconds": 4.5}
    meta |= {"guidelines_version": 2, "sources": [[{"policy": "sft"}], []]}
    row = {**ROW, "responses": ['No,\n"no"', "Ja: ü"], "ranks": [2, 1], "meta": meta}
    assert exported("csv", [row]).decode("utf-8") == (
        '\ufeff"item_id","prompt_id","group","annotator","prompt","response","rank","unacceptable","shown_at","policy",'
        '"comment","seconds","guidelines_version"\r\n'
        '"i1","p1","","anon-1","Why?","No,\n""no""","2","yes","2","sft","ok","4.5","2"\r\n'
        '"i1","p1","","anon-1","Why?","Ja: ü","1","no","1","","ok","4.5","2"\r\n'
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_csv_cell_begins_like_a_formula(start):
    row = {
        **ROW,
        "prompt": [user(f"{start}1")],
        "responses": [f"{start}cmd|' /C calc'!A0", "B", "C"],
        "annotator": start,
    }
    text = exported("csv", [row]).decode("utf-8-sig")
    cells = [cell for line in csv.reader(io.StringIO(text, newline="")) for cell in line]
    assert f"'{start}cmd|' /C calc'!A0" in cells
    assert not any(cell.startswith(start) for cell in cells)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\t", ";"])
def test_no_later_line_or_column_of_a_csv_cell_begins_like_a_formula(end, start):
    assert safe(f"Sure:{end}{start}cmd") == f"Sure:{end}'{start}cmd"


@given(text=st.text(st.sampled_from("=+-@'\n\r\t;ab \u2028\uff1d"), max_size=12))
def test_what_a_reader_of_csv_takes_off_leaves_what_was_ranked(text):
    assert unprotected(safe(text)) == text


def test_a_text_without_formulas_is_in_csv_as_it_is():
    for text in ("It's 1 + 1 = 2", "a-b", "'quoted'", "x\n  - item"):
        assert safe(text) == text


def test_parquet_is_read_by_the_reward_stage(tmp_path):
    from omegaconf import OmegaConf

    path = tmp_path / "rankings.parquet"
    formats.write("parquet", [ROW, {**ROW, "ranks": [1, None, 3], "margin": 0.5}], path)
    data = {"rankings": str(path), "on_error": "error", "fields": {}, "valid_share": 0.0, "test_share": 0.0}
    data["gold_rule"] = None
    first, second = load_rankings(OmegaConf.create(data), DataReport())["train"]
    assert (first.ranks, first.annotator, first.margin) == ((2, 1, 2), "anon-1", None)
    assert (second.ranks, second.margin) == ((1, None, 3), 0.5)


# From other tools

ARGILLA = {
    "id": "r1",
    "fields": {"prompt": "Why?", "reply-1": "A", "reply-2": "B", "reply-3": "C"},
    "responses": [
        {
            "user_id": "u1",
            "status": "submitted",
            "values": {
                "order": {"value": [{"value": "reply-2", "rank": 1}, {"value": "reply-1", "rank": 2},
                                    {"value": "reply-3", "rank": 2}]},
                "quality": {"value": 4},
                "tags": {"value": ["good", "short"]},
            },
        },
        {"user_id": "u2", "status": "draft", "values": {"order": {"value": [{"value": "reply-1", "rank": 1}]}}},
        {"user_id": "u3", "status": "discarded", "values": None},
    ],
}  # fmt: skip


@pytest.mark.parametrize("wrap", [lambda record: [record], lambda record: {"items": [record], "total": 1}])
def test_argilla_rankings_are_read_with_their_ties(tmp_path, wrap):
    row = {"prompt": [user("Why?")], "responses": ["B", "A", "C"], "ranks": [1, 2, 2]}
    assert imported(tmp_path, "argilla", wrap(ARGILLA), ".json") == [{**row, "annotator": "u1", "prompt_id": "r1"}]


def test_argilla_files_without_ranks_are_refused_with_the_reason(tmp_path):
    record = {**ARGILLA, "responses": {"order": [{"value": ["reply-1", "reply-2"], "user_id": "u1"}]}}
    assert "which loses the ranks; export the server's records" in told(tmp_path, "argilla", [record], ".json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": None}, "file.json[0]: field 'fields' must be an object, not null"),
        ({"fields": {"text": "Why?"}}, "file.json[0]: field 'fields' has no prompt or instruction (found: text)"),
        ({"fields": {"prompt": "Why?", "a": "A"}}, "file.json[0]: option 'reply-2, reply-1, reply-3' is not among the"),
    ],
)
def test_a_bad_argilla_record_is_told_what_is_wrong(tmp_path, change, message):
    assert told(tmp_path, "argilla", [ARGILLA | change], ".json").startswith(message)


TASK = {
    "id": 5,
    "data": {
        "prompt": "Why?",
        "items": [{"id": "x", "title": "1", "body": "A"}, {"id": "y", "title": "2", "body": "B"}],
    },
    "annotations": [
        {
            "completed_by": {"id": 3, "email": "someone@example.org"},
            "was_cancelled": False,
            "lead_time": 12.5,
            "result": [{"type": "ranker", "value": {"ranker": {"rank": ["y", "x"]}}}, {"type": "choices", "value": {}}],
        },
        {"completed_by": 4, "was_cancelled": True, "result": [{"type": "ranker", "value": {"ranker": ["x", "y"]}}]},
    ],
}


def with_ranker(ranker):
    result = [{"type": "ranker", "value": {"ranker": ranker}}]
    return [{**TASK, "annotations": [{"completed_by": 3, "result": result}]}]


def test_label_studio_rankings_are_read_without_the_e_mail_address(tmp_path):
    row = {"prompt": [user("Why?")], "responses": ["A", "B"], "ranks": [2, 1], "annotator": "3", "prompt_id": "5"}
    assert imported(tmp_path, "label_studio", [TASK], ".json") == [{**row, "meta": {"seconds": 12.5}}]
    assert imported(tmp_path, "label_studio", with_ranker(["y", "x"]), ".json") == [row]


def test_what_stays_in_the_list_of_label_studio_is_not_ranked(tmp_path):
    items = [{"id": name, "body": name.upper()} for name in "abc"]
    task = {**with_ranker({"_": ["a"], "best": ["c", "b"]})[0], "data": {"question": "Why?", "answers": items}}
    assert imported(tmp_path, "label_studio", [task], ".json")[0]["ranks"] == [None, 2, 1]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([{"id": 1}], "file.json[0]: field 'data' must be an object, not null; choose the export format JSON"),
        ([{**TASK, "data": {"x": 1}}], "file.json[0]: field 'data' has no prompt, question, text (found: x)"),
        ([{**TASK, "data": {"prompt": "Why?"}}], "file.json[0]: field 'data' must have one list of {id, body}, has 0"),
        (with_ranker({"good": ["x"], "bad": ["y"]}), "file.json[0]: the ranker has 2 buckets (good, bad)"),
        (with_ranker(["x", "z"]), "file.json[0]: ranks z, which is not among the answers (x, y)"),
        (with_ranker(["x", "x"]), "file.json[0]: ranks an answer twice (x, x)"),
        (with_ranker({"_": ["x", "y"]}), "file.json[0]: the ranker's value must be a list of ids"),
        (with_ranker(["x"]), "file.json[0]: field 'ranks' ranks 1 of 2 responses"),
        ({"tasks": []}, "file.json: must be a JSON array of records"),
        (["x"], "file.json[0]: a record must be a JSON object, not str"),
        (b"[", "file.json:1:2: not valid JSON"),
    ],
)
def test_a_bad_label_studio_file_is_told_what_is_wrong(tmp_path, tasks, message):
    assert told(tmp_path, "label_studio", tasks, ".json").startswith(message)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("canonical", {**ROW, "ranks": [1, 2]}, "file.jsonl:1: field 'ranks' has 2 entries for 3 responses"),
        ("canonical", {**ROW, "meta": 1}, "file.jsonl:1: field 'meta' must be an object, not a number"),
        ("trl", {"chosen": "A"}, "file.jsonl:1: field 'rejected' is missing (found: chosen)"),
        (
            "trl",
            {"prompt": "Why?", "chosen": "A", "rejected": "B", "rank_gap": -1},
            "file.jsonl:1: field 'rank_gap' is -1",
        ),
        ("hh", {"chosen": "Hi", "rejected": "Ho"}, "file.jsonl:1: field 'chosen' must begin with '\\n\\nHuman:'"),
        ("openai", {"info": {"post": "x"}, "summary": {}, "worker": "w"}, "file.jsonl:1: rates one summary"),
        ("openai", {"summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}, "file.jsonl:1: field 'choice' is 2"),
        ("openai", {"summaries": [{"text": "a"}, {"text": "b"}], "choice": 1}, "file.jsonl:1: field 'info' must be an"),
    ],
)
def test_a_bad_record_names_its_line_and_its_field(tmp_path, name, line, message):
    assert told(tmp_path, name, line).startswith(message)


def test_all_problems_of_a_file_can_be_had_at_once(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text("{\n" + json.dumps(ROW) + "\n[]\n")
    problems = []
    assert list(formats.read("canonical", path, problems)) == [ROW]
    assert [str(problem).split(": ")[0].removeprefix(f"{path}:") for problem in problems] == ["1:2", "3"]


# Names, options, files


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exported("xml", []), "format 'xml' cannot be written; choose one of canonical, trl"),
        (lambda: formats.read("csv", "x.csv"), "format 'csv' cannot be read; choose one of canonical"),
        (lambda: exported("csv", [], strategy="all"), "format 'csv' has no option 'strategy'; it has none"),
        (lambda: exported("hh", [], strategy="best"), "strategy is 'best'; choose one of all, adjacent"),
    ],
)
def test_an_unknown_format_or_option_is_refused(call, message):
    with pytest.raises(Refusal, match=message):
        call()


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    path = tmp_path / "out.jsonl"
    assert formats.write("canonical", [ROW, ROW], path) == formats.Written(2, {})
    before = path.read_bytes()
    with pytest.raises(Conflict, match="is there already"):
        formats.write("canonical", [], path)
    assert path.read_bytes() == before


def test_an_export_that_is_refused_leaves_no_file(tmp_path):
    with pytest.raises(Refusal):
        formats.write("hh", [{**ROW, "prompt": [SYSTEM, user("Why?")]}], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


# There and back again

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
SAID = TEXTS.filter(str.strip)
TRIMMED = SAID.map(str.strip).filter(lambda text: "Human:" not in text and "Assistant:" not in text)
NAMES = st.none() | st.text("ab12", min_size=1, max_size=4)


def given_names(**names):
    return {name: value for name, value in names.items() if value is not None}


@st.composite
def dialogues(draw, said=SAID, system=True):
    turns = draw(st.lists(said, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return ([SYSTEM] if system and draw(st.booleans()) else []) + messages


@st.composite
def rankings(draw, said=SAID, system=True):
    """Any canonical row."""
    responses = draw(st.lists(said, min_size=2, max_size=6, unique=True))
    ranks = draw(st.lists(st.none() | st.integers(1, 4), min_size=len(responses), max_size=len(responses)))
    ranks[0], ranks[1] = ranks[0] or 1, ranks[1] or 1
    names = {"annotator": draw(NAMES), "prompt_id": draw(NAMES), "group": draw(NAMES)}
    numbers = {"margin": draw(st.none() | st.floats(0, 9)), "weight": draw(st.none() | st.floats(0.5, 9))}
    meta = draw(st.none() | st.dictionaries(st.sampled_from("xyz"), st.integers() | SAID, min_size=1))
    row = {"prompt": draw(dialogues(said, system)), "responses": responses, "ranks": competition(ranks)}
    return row | given_names(**names, **numbers, meta=meta)


@st.composite
def carried_by_pairs(draw, said=SAID, system=True, tied=True):
    """Rows of several items as pairs carry them: all ranked, the best first, not all tied unless `tied`."""
    rows = []
    for i in range(draw(st.integers(1, 3))):
        responses = draw(st.lists(said, min_size=2, max_size=5, unique=True))
        steps = draw(st.lists(st.integers(0, 1), min_size=len(responses) - 1, max_size=len(responses) - 1))
        steps = steps if tied or any(steps) else [1] * len(steps)
        ranks = competition([sum(steps[:j]) for j in range(len(responses))])
        row = {"prompt": draw(dialogues(said, system)), "responses": responses, "ranks": ranks}
        rows.append(row | given_names(annotator=draw(NAMES), prompt_id=draw(NAMES)) | {"meta": {"item_id": f"i{i}"}})
    return rows


@pytest.fixture(scope="module")
def there_and_back(tmp_path_factory):
    """there_and_back(name, rows, **options): import(export(rows))."""
    folder = tmp_path_factory.mktemp("formats")

    def run(name, rows, **options):
        path = folder / f"file{formats.FORMATS[name].suffix}"
        path.unlink(missing_ok=True)
        formats.write(name, rows, path, **options)
        return list(formats.read(name, path))

    return run


@pytest.mark.slow
@QUICK
@given(rows=st.lists(rankings(), min_size=1, max_size=3))
@pytest.mark.parametrize("name", ["canonical", "parquet"])
def test_canonical_rows_come_back_as_they_were(there_and_back, name, rows):
    assert there_and_back(name, rows) == rows


@QUICK
@given(rows=carried_by_pairs())
@pytest.mark.parametrize("name", ["trl", "trl_implicit"])
def test_rankings_come_back_from_soft_pairs(there_and_back, name, rows):
    assert there_and_back(name, rows, ties="soft") == rows


@QUICK
@given(rows=carried_by_pairs(tied=False))
@pytest.mark.parametrize("strategy", ["all", "adjacent", "best_vs_rest"])
def test_rankings_with_an_order_come_back_from_pairs(there_and_back, strategy, rows):
    assert there_and_back("trl", rows, strategy=strategy) == rows


@QUICK
@given(rows=carried_by_pairs(TRIMMED, system=False, tied=False))
def test_rankings_come_back_from_text(there_and_back, rows):
    assert there_and_back("trl", rows, style="text") == rows


@QUICK
@given(rows=carried_by_pairs(TRIMMED, system=False, tied=False), policies=st.booleans())
def test_rankings_come_back_from_openai_comparisons(there_and_back, rows, policies):
    if policies:
        for row in rows:
            row["meta"]["sources"] = [[{"policy": f"policy {i}"}] for i in range(len(row["responses"]))]
    assert there_and_back("openai", rows) == rows


@QUICK
@given(prompt=dialogues(TRIMMED, system=False), answers=st.lists(TRIMMED, min_size=2, max_size=2, unique=True))
def test_pairs_come_back_from_hh(there_and_back, prompt, answers):
    row = {"prompt": prompt, "responses": answers, "ranks": [1, 2]}
    assert there_and_back("hh", [row]) == [row]


def test_pairs_without_an_item_stay_pairs(there_and_back):
    row = {"prompt": [user("Why?")], "responses": ["A", "B", "C"], "ranks": [1, 2, 3]}
    assert [one["responses"] for one in there_and_back("trl", [row])] == [["A", "B"], ["A", "C"], ["B", "C"]]


def test_pairs_that_contradict_each_other_stay_pairs(tmp_path):
    lines = [
        {"prompt": "Why?", "chosen": a, "rejected": b, "item_id": "i", "rank_gap": 1} for a, b in ("AB", "BC", "CA")
    ]
    found = imported(tmp_path, "trl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert [one["responses"] for one in found] == [["A", "B"], ["B", "C"], ["C", "A"]]


def test_two_annotators_of_an_item_stay_two(there_and_back):
    row = {**ROW, "responses": ["B", "A", "C"], "ranks": [1, 2, 2]}
    rows = [row, {**row, "annotator": "anon-2"}]
    assert there_and_back("trl", rows) == rows


# TRL's own view


@pytest.mark.slow
def test_trl_sees_the_columns_that_it_documents(there_and_back):
    data_utils = pytest.importorskip("trl.data_utils")
    explicit, implicit = records("trl", [ROW])[0], records("trl_implicit", [ROW])[0]
    assert data_utils.is_conversational(explicit) and data_utils.is_conversational(implicit)
    found = data_utils.extract_prompt(implicit)
    assert {name: found[name] for name in ("prompt", "chosen", "rejected")} == {
        name: explicit[name] for name in ("prompt", "chosen", "rejected")
    }
    assert not data_utils.is_conversational(records("trl", [ROW], style="text")[0])
    (good,) = records("kto", [{**ROW, "ranks": [1, 2, 3]}])
    assert data_utils.is_conversational(good) and isinstance(good["label"], bool)

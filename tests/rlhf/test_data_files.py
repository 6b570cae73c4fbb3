"""What files people have: arrays, tables, byte order marks, other encodings, names that do not say what is in them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data import files as data_files
from rlhf.data.records import read_rows
from rlhf.data.report import DataReport
from rlhf.data.sources import is_version
from rlhf.errors import ArtifactError, UserError

ROWS = [{"prompt": "Two and two?", "completion": "Four."}, {"prompt": 'Say "ü",\nplease.', "completion": "ü"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = 'prompt,completion\nTwo and two?,Four.\n"Say ""ü"",\nplease.",ü\n'


@pytest.fixture(autouse=True)
def start_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(name, content, on_error="error", report=None):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(name, on_error, report or DataReport()))


def values_of(name, content):
    return [row.values for row in rows_of(name, content)]


def error_of(name, content, **options):
    with pytest.raises(UserError) as caught:
        rows_of(name, content, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


# One content, many files


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.json", "\n [" + json.dumps(ROWS, ensure_ascii=False, indent="\t")[1:] + "\n\n"),
        ("a.jsonl", json.dumps(ROWS)),
        ("A.JSON", json.dumps(ROWS)),
        ("a.csv", TABLE),
        ("a.csv", TABLE.replace("\nplease", "\0").replace("\n", "\r\n").replace("\0", "\nplease")),
        ("a.tsv", TABLE.replace("prompt,", "prompt\t").replace("?,F", "?\tF").replace('",ü', '"\tü')),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", ["no", "named", "not named"])
def test_one_content_is_read_from_every_kind_of_file(name, content, bom, packed):
    content = bom + (content if isinstance(content, bytes) else content.encode())
    name += ".gz" if packed == "named" else ""
    assert values_of(name, content if packed == "no" else gzip.compress(content)) == ROWS


def test_an_element_of_an_array_is_named_by_the_line_where_it_begins():
    rows = rows_of("a.json", '[\n {"a": 1}, {"a":\n 2},\n\n{"a": 3}\n]')
    assert [(row.where, row.values["a"]) for row in rows] == [("a.json:2", 1), ("a.json:2", 2), ("a.json:5", 3)]


def test_a_row_of_a_table_is_named_by_the_line_where_it_begins():
    rows = rows_of("a.csv", 'text\none\n\n"two\nlines"\nthree\n')
    assert [(row.where, row.values["text"]) for row in rows] == [
        ("a.csv:2", "one"),
        ("a.csv:4", "two\nlines"),
        ("a.csv:6", "three"),
    ]


def test_cells_of_a_table_stay_texts_and_empty_ones_are_null():
    table = "prompt,completion,system\n007,1e5,\nTrue, nan ,x\n"
    assert values_of("a.csv", table) == [
        {"prompt": "007", "completion": "1e5", "system": None},
        {"prompt": "True", "completion": " nan ", "system": "x"},
    ]


def test_the_nameless_index_column_of_pandas_gets_a_name():
    assert values_of("a.csv", ",text\n0,one\n") == [{"column 1": "0", "text": "one"}]


def test_a_folder_of_mixed_files_is_read_in_order_of_name():
    Path("many").mkdir()
    Path("many/b.csv").write_text("text\ntwo\n")
    Path("many/a.json").write_text('[{"text": "one"}]')
    pq.write_table(pa.Table.from_pylist([{"text": "three"}]), "many/c.parquet")
    assert [row.values["text"] for row in read_rows("many", "error", DataReport())] == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["manifest.json", "dataset_info.json", "dataset_infos.json"])
def test_what_describes_a_folder_is_not_read_as_its_records(name):
    Path("many").mkdir()
    Path("many/a.jsonl").write_text('{"text": "one"}')
    Path("many", name).write_text('{"title": "mine"}')
    assert [row.values["text"] for row in read_rows("many", "error", DataReport())] == ["one"]


def test_structs_and_lists_of_parquet_are_objects_and_lists():
    rows = [{"messages": [{"role": "user", "content": "A", "name": None}], "ranks": [1.0, None], "at": {"n": 1}}]
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    assert [row.values for row in read_rows("a.parquet", "error", DataReport())] == rows


# What a file is instead


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", LINES.decode().encode("utf-16"), "a.jsonl: is UTF-16 text; save it as UTF-8"),
        ("a.csv", TABLE.encode("utf-16"), "a.csv: is UTF-16 text; save it as UTF-8"),
        ("a.jsonl", LINES.decode().encode("utf-16-le"), "is this UTF-16? Save it as UTF-8"),
        (
            "a.jsonl",
            '{"text": "é"}'.encode("latin-1"),
            "byte 0xe9 at column 11 is not UTF-8; if it is in",
        ),
        ("a.json", '[{"a": 1},\n{"text": "é"}]'.encode("latin-1"), "a.json:2: byte 0xe9 is not UTF-8; if it"),
        ("a.csv", "text\none\né\n".encode("latin-1"), "byte 0xe9 is not UTF-8; if it is in a Windows encoding"),
        ("a.jsonl", gzip.compress(gzip.compress(LINES)), "a.jsonl: is compressed twice with gzip; unpack it once"),
        ("a.jsonl", b"PK\x03\x04more", "a.jsonl: is a zip archive or a spreadsheet; unpack it, or save it as CSV"),
        ("a.csv", b"PAR1more", "a.csv: is a Parquet file; let its name end in .parquet"),
        (
            "a.jsonl",
            json.dumps(ROWS[0], indent=1),
            "An object over several lines is not read; write one record a line, or one array: jq",
        ),
        ("a.json", '[{"a": 1},\n {"a" 2}]', "a.json:2:7: not valid JSON (Expecting ':' delimiter), so the rest of"),
        ("a.json", '[{"a": 1}\n {"a": 2}]', "a.json:2: not valid JSON (after an element of an array comes , or ])"),
        ("a.json", '[{"a": 1}', "a.json:1: not valid JSON (after an element of an array comes , or ])"),
        ("a.json", '[{"a": 1}]\n[{"a": 2}]', "a.json:1: more comes after the end of the array; give one array"),
        ("a.json", "[[" + "[" * 200_000, "a.json:1: not valid JSON ("),
        ("a.json", "[]", "a.json: the source is empty (0 records); need at least 1"),
        ("a.csv", "", "a.csv: the source is empty (0 records); need at least 1"),
        (
            "a.csv",
            "prompt;completion\nA;b\n",
            "a.csv: the header is one column, 'prompt;completion'; divided by ';'",
        ),
        (
            "a.tsv",
            "prompt,completion\nA,b\n",
            "a.tsv: the header is one column, 'prompt,completion'; divided by ','",
        ),
        ("a.csv", "a,a\n1,2\n", "a.csv: the header names a column twice (a, a)"),
        (
            "a.csv",
            'a\n"x" y\n',
            "a.csv:2: this row cannot be read (',' expected after '\"'); a text with \" in it stands",
        ),
        ("a.csv", 'a\nx\n"y\nz', "a.csv:3: this row cannot be read (unexpected end of data)"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv:3: the row has 3 cells, not one for each column of the header"),
        ("a.csv", "a,b\n1\n", "a.csv:2: the row has 1 cells, not one for each column of the header"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told_what_it_is(name, content, message):
    assert message in error_of(name, content)


def test_an_array_over_the_limit_is_refused_with_the_way_to_make_lines_of_it(monkeypatch):
    monkeypatch.setattr(data_files, "MAX_ARRAY_BYTES", 50)
    assert values_of("a.json", '[{"a": 1}]') == [{"a": 1}]
    assert "write one record a line (jq -c '.[]' FILE)" in error_of("a.json", json.dumps(ROWS))


def test_an_element_that_json_lines_would_refuse_is_refused_in_an_array_too():
    report = DataReport()
    rows = rows_of("a.json", '[{"a": 1},\n17,\n{"a": NaN},\n{"a": 1, "a": 2},\n{"a": 2}]', "skip", report)
    assert [row.values for row in rows] == [{"a": 1}, {"a": 2}]
    assert {found["rule"]: found["places"] for found in report.findings("skipped")} == {
        "a record must be a JSON object, not a number": ["a.json:2"],
        "not valid JSON": ["a.json:3", "a.json:4"],
    }


def test_a_row_with_a_cell_too_many_is_skipped_when_asked():
    assert [row.values for row in rows_of("a.csv", "a,b\n1,2\n1,2,3\n3,4\n", "skip")] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]


# ---- a version of a collection is known by its manifest


@pytest.mark.parametrize(
    ("manifest", "is_one"),
    [
        ('{"stage":"collect"}', True),  # written without spaces: somebody altered it, and it must not be read as it is
        ('{"stage": "sft", "config": {"stage": "collect"}}', False),
        ('["stage", "collect"]', False),
    ],
)
def test_a_folder_is_a_version_of_a_collection_where_its_manifest_says_so(tmp_path, manifest, is_one):
    (tmp_path / "manifest.json").write_text(manifest)
    assert is_version(str(tmp_path)) is is_one


def test_a_folder_whose_manifest_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"stage": "collect", ')
    with pytest.raises(ArtifactError, match=r"manifest\.json:1:\d+: not valid JSON"):
        is_version(str(tmp_path))

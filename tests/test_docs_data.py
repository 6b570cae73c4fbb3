"""docs/data.md: each shape in its table is read by the real readers, and its command is one that the config knows."""

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from rlhf.data.columns import FIELDS
from rlhf.data.files import TEXT_SUFFIXES
from rlhf.data.load import parse_demonstration, parse_prompt, parse_sources
from rlhf.data.records import read_rows
from rlhf.data.report import DataReport

TEXT = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
SHAPES = re.findall(r"^\| ([\w ,/]+) \| `(\{.*?\})` \|", TEXT, re.MULTILINE)


def read(record, kind, parse, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(record + "\n")
    report = DataReport()
    (result,) = read_rows(str(path), "error", report, kind, parse=parse)
    assert report.as_dict()["sources"][0]["fields_not_used"] == {} or kind == "prompts"
    return result


def test_the_table_has_shapes():
    assert len(SHAPES) == 11


@pytest.mark.parametrize(("shape", "record"), SHAPES, ids=[shape for shape, _ in SHAPES])
def test_each_shape_of_the_table_is_read_whole(shape, record, tmp_path):
    demonstration = read(record, "demonstrations", parse_demonstration, tmp_path)
    if shape == "plain text":
        assert demonstration.text == json.loads(record)["text"]
        return
    prompt = read(record, "prompts", parse_prompt, tmp_path)
    assert prompt.messages == demonstration.messages[:-1]
    assert demonstration.messages[-1]["role"] == "assistant"


def test_the_mapping_of_a_source_is_written_as_hydra_and_the_reader_take_it():
    (command,) = re.findall(r'"(data.demonstrations=.*fields.*)"', TEXT)
    with initialize_config_module("conf", version_base=None):
        sources = parse_sources(compose("config", ["data=own", command]).data.demonstrations, "data.demonstrations")
    assert sources[1].fields == {"prompt": "question", "completion": "answer", "group": None}
    assert sources[0].weight == 2


def test_every_suffix_and_every_field_that_the_page_names_is_known():
    assert all(f"`{suffix}`" in TEXT for suffix in TEXT_SUFFIXES)
    (named,) = re.findall(r"Fields: (.*?), and those of rankings", TEXT, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", named)) <= set(FIELDS)

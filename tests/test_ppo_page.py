"""docs/ppo.md: each file, function and test that it names exists, and every detail has all of them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE)))


def definitions(path):
    """The names of the functions and classes of a file; methods as Class.method."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            parts = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{part.name}" for part in parts if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize(("path", "name"), NAMED, ids=map("::".join, NAMED))
def test_what_is_named_exists(path, name):
    assert name in definitions(path)


def test_each_detail_has_its_number_its_code_and_its_test():
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1)) and len(rows) > 40
    for number, what, _, code, test in rows:
        assert what.strip().endswith("."), number
        assert re.search(r"`(rlhf|reward|stages)/", code), number
        assert re.search(r"`tests/", test), number

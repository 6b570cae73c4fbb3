"""A collection of the first release goes on: it is upgraded, its audit takes stock, and what did not fit is told."""

import json
import re
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from collect_world import do
from tampering import tamper

from reward.collect.integrity import verify
from reward.collect.store.database import Database, _alembic

OLD = json.loads((Path(__file__).parent / "collections/release_0001.json").read_text(encoding="utf-8"))
LATER = 2_000_000.0
ID = "[0-9a-f]{32}"


@pytest.fixture
def old(database_url):
    """Two annotators and a lead, five items and a gold one, three rankings of which one is revised, a skip, a flag."""
    database = Database(database_url)
    with database._writing.begin() as connection:
        command.upgrade(_alembic(connection), "0001")
        names = sqlalchemy.MetaData()
        names.reflect(connection)
        for table in names.sorted_tables:
            for row in OLD.get(table.name, []):
                if table.name != "alembic_version":
                    connection.execute(sqlalchemy.insert(table).values(as_values(table, row)))
    yield database
    database.close()


def as_values(table, row: dict) -> dict:
    """The row's JSON as values, since each kind of database writes it its own way."""
    is_json = {column.name for column in table.c if isinstance(column.type, sqlalchemy.JSON)}
    return {name: json.loads(value) if name in is_json and value is not None else value for name, value in row.items()}


def test_an_old_collection_is_upgraded_and_its_audit_tells_of_all_rows(old):
    old.upgrade()
    assert do(old, verify.take_stock, "command line", LATER).findings.lines() == []
    assert do(old, verify.take_stock, "command line", LATER) is None
    with old.read() as session:
        checked = verify.check(session)
        assert (checked.findings.count, checked.knows_all, checked.stock) == (0, True, 20)
        tamper(session, "UPDATE item SET gold_ranks = '{}' WHERE kind = 'gold'")
        (line,) = verify.check(session).findings.lines()
    assert line.endswith("gold_ranks not as audit row 28 (take stock) wrote it")


PROMPT = "UPDATE prompt SET messages = '[]' WHERE id = (SELECT min(id) FROM prompt)"
KNOWN = {  # what the first release knows of its rows
    "UPDATE response SET text = 'x' WHERE text = '0.0'": f"response {ID}: text does not fit content_sha256",
    PROMPT: f"prompt {ID}: messages does not fit content_sha256",
    "UPDATE annotation SET comment = 'x' WHERE revision = 2": f"annotation {ID}: it is not what the audit tells of",
    "UPDATE annotator SET role = 'lead' WHERE handle = 'ben'": f"annotator {ID}: role is not what the audit says",
    "UPDATE annotator SET status = 'active' WHERE handle = 'ben'": f"annotator {ID}: status is not what the audit says",
    "UPDATE guidelines SET text = 'x' WHERE version = 2": "guidelines 2: it is not what the audit tells of",
    "UPDATE collection SET name = 'x'": "collection 1: name is not what the audit says",
    "DELETE FROM skip": rf"skip {ID} {ID}: is gone; audit row \d+ \(skip\) tells of it",
    "DELETE FROM annotation WHERE revision = 2": rf"annotation {ID}: is gone; audit row \d+ \(revise\) tells of it",
}


@pytest.mark.parametrize("statement", KNOWN)
def test_what_the_first_release_knows_of_its_rows_is_checked_before_stock_is_taken(old, statement):
    old.upgrade()
    with old.write() as session:
        tamper(session, statement)
    checked = do(old, verify.take_stock, "command line", LATER)
    (line,) = checked.findings.lines()
    assert re.fullmatch(KNOWN[statement], line), line

"""The audit: each step adds a row, which names what it wrote and carries the hash of the row before."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from collect_world import NOW, add_new_items, add_people, add_ranked_items, do, items_of, take
from sqlalchemy import delete, insert, select, update

from reward.collect.integrity.verify import require_whole
from reward.collect.store import audit
from reward.collect.store.audit_key import VARIABLE
from reward.collect.store.tables import Annotator, Audit, Collection, Flag, Slot
from rlhf.errors import UserError

KEY = "0123456789abcdef" * 2


def rows_of(database) -> list[Audit]:
    with database.read() as session:
        return list(session.scalars(select(Audit).order_by(Audit.id)))


def require_unchanged(database) -> int:
    """The number of audit rows."""
    with database.read() as session:
        return require_whole(session).audit_rows


# The chain


def test_a_row_is_hashed_with_the_hash_of_the_row_before(database):
    with database.write() as session:
        before = audit.last_hash(session)
        first = audit.append(session, "somebody", "sign in", "page", now=NOW)
        second = audit.append(session, "somebody", "sign out", "page", {"open": True}, {"open": False}, "r1", now=NOW)
    said = {"id": first.id + 1, "at": NOW, "actor": "somebody", "action": "sign out", "object": "page"}
    said |= {"before": {"open": True}, "after": {"open": False}, "request_id": "r1", "prev_hash": first.hash}
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    assert (first.prev_hash, second.hash) == (before, hashlib.sha256(canonical.encode()).hexdigest())


def test_the_first_row_follows_zeros(database):
    assert rows_of(database)[0].prev_hash == "0" * 64


def test_writers_at_the_same_time_leave_no_gap_and_no_fork(database):
    def write(i: int) -> None:
        with database.write() as session:
            audit.append(session, f"writer {i}", "test", "nothing", now=NOW)

    before = require_unchanged(database)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert require_unchanged(database) == before + 40


def test_what_is_undone_is_not_audited(database):
    before = require_unchanged(database)
    with pytest.raises(ZeroDivisionError), database.write() as session:
        audit.append(session, "somebody", "test", "nothing", now=NOW)
        raise ZeroDivisionError
    assert require_unchanged(database) == before


def test_the_last_hash_stands_for_all_rows(database):
    with database.write() as session:
        before = audit.last_hash(session)
        row = audit.append(session, "somebody", "test", "nothing", now=NOW)
        assert (row.prev_hash, audit.last_hash(session)) == (before, row.hash)


# What a row tells of


def test_a_submission_tells_of_its_annotation_and_of_the_item_that_it_closes(database):
    (made,) = add_ranked_items(database, 1)
    written = next(row.written for row in rows_of(database) if row.action == "submit")
    assert {table: list(rows) for table, rows in written.items()} == {"annotation": [made.id], "item": [made.item_id]}


def test_an_import_tells_of_each_row(database):
    add_new_items(database, 2, k=3)
    written = rows_of(database)[-1].written
    assert {table: len(rows) for table, rows in written.items()} == {"prompt": 2, "response": 6, "item": 2, "slot": 2}


def test_what_no_step_tells_of_gets_a_row_of_its_own(database):
    before = len(rows_of(database))
    with database.write() as session:
        session.get(Collection, 1).origin = "https://rank.example.org"
    row = rows_of(database)[-1]
    assert (len(rows_of(database)), row.actor, list(row.written["collection"])) == (before + 1, "server", ["1"])
    with database.write() as session:
        session.get(Collection, 1).origin = "https://rank.example.org"
    assert len(rows_of(database)) == before + 1


def test_changes_of_many_rows_at_once_are_told_of(database):
    people = add_people(database, "ann", "ben")
    with database.write() as session:
        session.execute(update(Annotator).where(Annotator.handle != "x").values(status="paused"))
    assert set(rows_of(database)[-1].written["annotator"]) == {person.id for person in people}
    require_unchanged(database)


def test_a_row_that_is_taken_out_is_told_of_as_gone(database):
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    names = {"item_id": items_of(database)[0].id, "annotator_id": ann.id, "reason": "x", "note": "", "at": NOW}
    with database.write() as session:
        session.add_all([Flag(id="a", **names), Flag(id="b", **names)])
    with database.write() as session:
        session.delete(session.get(Flag, "a"))
        session.execute(delete(Flag).where(Flag.id == "b"))
    assert rows_of(database)[-1].written == {"flag": {"a": None, "b": None}}
    require_unchanged(database)


def test_lending_a_turn_is_not_told_of(database):
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    before = len(rows_of(database))
    take(database, ann)
    assert len(rows_of(database)) == before


def test_rows_cannot_be_added_past_the_audit(database):
    with (
        pytest.raises(TypeError, match=r"rows of slot are added with session.add_all\(\)"),
        database.write() as session,
    ):
        session.execute(insert(Slot), [{"id": "a", "item_id": "b", "n": 0, "state": "open"}])


def test_what_a_savepoint_undid_is_not_told_of(database):
    before = len(rows_of(database))
    with database.write() as session:
        undone = session.begin_nested()
        session.add(Annotator(id="a", handle="ann", role="lead", password_hash="", status="active", created_at=NOW))
        session.flush()
        undone.rollback()
    assert len(rows_of(database)) == before


# The key


def test_a_chain_under_a_key_cannot_be_hashed_without_it(make_collection, database_url, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    database = make_collection(database_url)
    with database.write() as session:
        row = audit.append(session, "somebody", "test", "nothing", now=NOW)
    fingerprint, _, digest = row.hash.partition(":")
    assert (len(fingerprint), len(digest)) == (12, 64)
    assert digest != audit.row_hash(vars(row), None)
    require_unchanged(database)


def test_a_forgotten_key_and_another_key_are_told(make_collection, database_url, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    database = make_collection(database_url)
    fingerprint = rows_of(database)[0].hash[:12]
    monkeypatch.delenv(VARIABLE)
    for does in (require_unchanged, lambda database: do(database, audit.require_key), add_one):
        with pytest.raises(UserError, match=f"the audit chain has the key {fingerprint}..., and {VARIABLE} is not set"):
            does(database)
    monkeypatch.setenv(VARIABLE, "another key of more than 32 characters")
    for does in (require_unchanged, add_one):
        with pytest.raises(UserError, match=f"the audit chain has the key {fingerprint}..., and {VARIABLE} is another"):
            does(database)


def add_one(database) -> None:
    with database.write() as session:
        audit.append(session, "somebody", "test", "nothing", now=NOW)


def test_a_short_key_is_refused(database, monkeypatch):
    monkeypatch.setenv(VARIABLE, "x" * 31)
    with pytest.raises(UserError, match=f"{VARIABLE} has 31 characters; give 32 or more random ones"):
        add_one(database)


def test_a_key_begins_when_it_is_asked_for_and_not_by_itself(database, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    with pytest.raises(UserError, match=f"{VARIABLE} is set, and the audit chain ends without a key"):
        add_one(database)
    fingerprint = do(database, audit.begin_key, "command line", NOW)
    assert rows_of(database)[-1].hash.startswith(f"{fingerprint}:")
    assert do(database, audit.begin_key, "command line", NOW) is None
    add_one(database)
    with database.read() as session:
        assert require_whole(session).keyed_from == 2

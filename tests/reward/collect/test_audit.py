"""The audit: whoever changes the database behind the server's back leaves a trace."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from collect_world import NOW, add_ranked_items
from sqlalchemy import text

from reward.collect import audit
from rlhf.errors import UserError


@pytest.fixture
def collection(database):
    """Three rankings, and the four rows that tell of them: one of the items, one of each ranking."""
    add_ranked_items(database, 3)
    return database


def change(database, sql: str) -> None:
    with database.write() as session:
        assert session.execute(text(sql)).rowcount == 1


def verify(database) -> int:
    with database.read() as session:
        return audit.verify(session)


def test_an_untouched_collection_is_in_order(collection):
    assert verify(collection) == 4


def test_a_row_is_hashed_with_the_hash_of_the_row_before(database):
    with database.write() as session:
        first = audit.append(session, "somebody", "sign in", "page", now=NOW)
        second = audit.append(session, "somebody", "sign out", "page", {"open": True}, {"open": False}, "r1", now=NOW)
    said = {"id": 2, "at": NOW, "actor": "somebody", "action": "sign out", "object": "page", "prev_hash": first.hash}
    said |= {"before": {"open": True}, "after": {"open": False}, "request_id": "r1"}
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    assert (first.prev_hash, second.hash) == ("0" * 64, hashlib.sha256(canonical.encode()).hexdigest())


@pytest.mark.parametrize("column, value", [("actor", "'x'"), ("at", "1.0"), ("after", "'{}'"), ("object", "'x'")])
def test_an_edited_audit_row_is_found(collection, column, value):
    change(collection, f'UPDATE audit SET "{column}" = {value} WHERE id = 2')
    with pytest.raises(UserError, match="audit row 2: has been changed since it was written"):
        verify(collection)


def test_an_audit_row_that_was_edited_and_hashed_anew_is_found_by_the_next(collection):
    with collection.write() as session:
        row = session.get(audit.Audit, 2)
        row.actor = "x"
        row.hash = audit.row_sha256(row)
    with pytest.raises(UserError, match="audit row 3: does not follow row 2"):
        verify(collection)


def test_a_removed_audit_row_is_found(collection):
    change(collection, "DELETE FROM audit WHERE id = 2")
    with pytest.raises(UserError, match="audit row 2: was taken out"):
        verify(collection)


def test_the_removed_last_audit_row_is_missed_by_its_annotation(collection):
    change(collection, "DELETE FROM audit WHERE id = 4")
    with pytest.raises(UserError, match=r"annotation [0-9a-f]{32}: no audit row tells of it"):
        verify(collection)


@pytest.mark.parametrize("column, value", [("comment", "'x'"), ("ranks", "'{}'"), ("active_seconds", "1.0")])
def test_an_annotation_that_was_edited_behind_its_back_is_found(collection, column, value):
    change(collection, f"UPDATE annotation SET {column} = {value} WHERE submitted_at = {NOW + 60}")
    with pytest.raises(UserError, match=r"annotation [0-9a-f]{32}: has been changed since audit row 2 was written"):
        verify(collection)


def test_an_annotation_that_was_deleted_is_found(collection):
    change(collection, f"DELETE FROM annotation WHERE submitted_at = {NOW + 60}")
    with pytest.raises(UserError, match=r"annotation [0-9a-f]{32}: is gone; audit row 2 tells that it was entered"):
        verify(collection)


def test_writers_at_the_same_time_leave_no_gap_and_no_fork(database):
    def write(i: int) -> None:
        with database.write() as session:
            audit.append(session, f"writer {i}", "test", "nothing", now=NOW)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert verify(database) == 40


def test_what_is_undone_is_not_audited(database):
    with pytest.raises(ZeroDivisionError), database.write() as session:
        audit.append(session, "somebody", "test", "nothing", now=NOW)
        raise ZeroDivisionError
    assert verify(database) == 0


def test_the_last_hash_stands_for_all_rows(collection):
    with collection.write() as session:
        before = audit.last_hash(session)
        row = audit.append(session, "somebody", "test", "nothing", now=NOW)
        assert (row.prev_hash, audit.last_hash(session)) == (before, row.hash)

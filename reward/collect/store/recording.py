"""What a transaction writes to the guarded tables, noted as it is written, for the audit row that tells of it.

Whatever goes through the session is noted; whatever does not is a change from outside, and verify finds it.
"""

from sqlalchemy import Update, event, select
from sqlalchemy.orm import ORMExecuteState, Session, object_mapper

from reward.collect.store.row_digests import GUARDED, key_columns, key_of, written_digests
from reward.collect.store.tables import Base


class RecordedSession(Session):
    """A session that notes what it writes to the guarded tables."""


def note(session: Session, table: type[Base], key: tuple, is_gone: bool = False) -> None:
    session.info.setdefault("written", {}).setdefault(table, {})[tuple(key)] = is_gone


def take(session: Session) -> dict[str, dict[str, str | None]] | None:
    """Table -> key -> digest of each row that was noted since the last call; None where nothing was."""
    taken = {}
    for table, keys in session.info.pop("written", {}).items():
        there = written_digests(session, table, keys)
        gone = {key_of(key): None for key, is_gone in keys.items() if is_gone}
        if rows := gone | there:  # what is neither was undone, with the part of the transaction that wrote it
            taken[table.__tablename__] = rows
    return taken or None


@event.listens_for(RecordedSession, "after_flush")
def _note_flushed(session: Session, context) -> None:
    for row in (*session.new, *(row for row in session.dirty if session.is_modified(row)), *session.deleted):
        if type(row) in GUARDED:
            note(session, type(row), object_mapper(row).primary_key_from_instance(row), row in session.deleted)


@event.listens_for(RecordedSession, "do_orm_execute")
def _note_bulk(state: ORMExecuteState) -> None:
    """Of an UPDATE or DELETE of many rows: which they are, before they are changed."""
    table = state.bind_mapper.class_ if state.bind_mapper else None
    if table not in GUARDED or state.is_select:
        return
    if state.is_insert:
        raise TypeError(f"rows of {table.__tablename__} are added with session.add_all(), which notes what it writes")
    if state.is_delete or _changes_guarded(state.statement, table):
        where = [] if state.statement.whereclause is None else [state.statement.whereclause]
        for key in state.session.execute(select(*key_columns(table)).where(*where)).all():
            note(state.session, table, key, is_gone=state.is_delete)


def _changes_guarded(statement: Update, table: type[Base]) -> bool:
    """Not of a slot's lease, say, which comes and goes."""
    changed = {column.name for column in statement._values}  # the one place where SQLAlchemy keeps them
    return not changed.isdisjoint(GUARDED[table])

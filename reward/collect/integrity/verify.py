"""Whether a collection is as it was written: the chain of hashes, each row that it tells of, and the sealed versions.

The chain is read once, from its first row on, and what it tells of each row is kept on disk; then each table is read
once. Memory does not grow with the collection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import and_, or_, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from reward.collect.integrity.expected import Expected, Told
from reward.collect.integrity.findings import Findings
from reward.collect.integrity.old_rows import facts_of, misfits
from reward.collect.integrity.sealed import check_folders, check_seals, seals
from reward.collect.refusals import Damaged
from reward.collect.store import audit
from reward.collect.store.audit_key import AuditKey, audit_key, keyed_as
from reward.collect.store.row_digests import (
    AT_ONCE,
    GUARDED,
    as_stored,
    differing,
    digest,
    json_or_text,
    marks,
    stored_rows,
    unreadable,
)
from reward.collect.store.tables import Annotation, Audit, Base, Slot

STOCK = "take stock"  # the action that tells of all rows as they were found, in a collection of the first release
COLUMNS = (*audit.HASHED, "written", "hash")


@dataclass
class Checked:
    """What was looked at, and what does not fit."""

    findings: Findings = field(default_factory=Findings)
    audit_rows: int = 0
    rows: int = 0
    versions: int = 0
    keyed_from: int | None = None  # the first audit row under a key
    knows_all: bool = False  # whether the chain tells of each row; not so in a collection of the first release
    stock: int | None = None  # the audit row that took stock of such a collection
    seen: set[str] = field(default_factory=set)  # those of the hashes that versions were sealed with


def check(session: Session, versions: Path | None = None, *, folders: bool = False) -> Checked:
    """Looks at everything. versions: the folder of the versions, whose seals are looked up in the chain.

    folders: looks at each file of them as well. Raises UserError where the chain has another key than the environment,
    Damaged where the database cannot be read.
    """
    audit.require_key(session)
    checked, expected, sealed = Checked(), Expected(), seals(versions)
    try:
        with any_bytes(session):
            _replay(session, expected, checked, set(sealed.values()))
            for table in GUARDED:
                with readable(table):
                    _compare(session, table, expected, checked)
            _check_turns(session, checked.findings)
        check_seals(sealed, checked.seen, checked.findings)
        if folders and versions:
            checked.versions = check_folders(session, versions, checked.findings)
    finally:
        expected.close()
    return checked


def require_whole(session: Session, versions: Path | None = None) -> Checked:
    """check(), and Altered unless all fits."""
    checked = check(session, versions)
    checked.findings.require_none()
    return checked


@contextmanager
def any_bytes(session: Session) -> Iterator[None]:
    """Text that is no UTF-8 is read with lone surrogates in it, where SQLite would end the query."""
    if session.get_bind().dialect.name != "sqlite":
        yield
        return
    connection = session.connection().connection.dbapi_connection
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        connection.text_factory = str


@contextmanager
def readable(table: type[Base]) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        name = table.__tablename__
        raise Damaged(f"the table {name} cannot be read ({error.orig}). Nothing was stored") from error


# The chain


def _replay(session: Session, expected: Expected, checked: Checked, sealed: set[str]) -> None:
    checked.seen |= {audit.FIRST_PREV_HASH} & sealed
    prev_hash, key = audit.FIRST_PREV_HASH, audit_key()
    with readable(Audit):
        for row in _audit_rows(session):
            _check_link(row, prev_hash, key, checked)
            _learn(row, expected, checked)
            checked.audit_rows, prev_hash = row["id"], row["hash"]
            checked.seen |= {prev_hash} & sealed


def _audit_rows(session: Session) -> Iterator[dict]:
    rows = as_stored(Audit, COLUMNS).order_by(Audit.id)
    for values in session.execute(rows, execution_options={"yield_per": 500}):
        row = dict(zip(COLUMNS, values[1:], strict=True))
        yield row | {name: json_or_text(row[name]) for name in ("before", "after", "written")}


def _check_link(row: dict, prev_hash: str, key: AuditKey | None, checked: Checked) -> None:
    number, expected, used = row["id"], checked.audit_rows + 1, keyed_as(str(row["hash"]))
    checked.keyed_from = checked.keyed_from or (number if used else None)
    if number != expected:
        gap = f"audit row {expected}" if number == expected + 1 else f"audit rows {expected} to {number - 1}"
        checked.findings.add(gap, "taken out")
    elif row["prev_hash"] != prev_hash:
        checked.findings.add(f"audit row {number}", f"does not follow row {number - 1}; one of the two was changed")
    if checked.keyed_from and not used:
        checked.findings.add(f"audit row {number}", "its hash is without the key that earlier rows have")
    elif row["hash"] != _hash_of(row, key if used else None):
        checked.findings.add(f"audit row {number}", "is not what its hash stands for")


def _hash_of(row: dict, key: AuditKey | None) -> str | None:
    try:
        return audit.row_hash(row, key)
    except TypeError:  # a damaged database may hold bytes
        return None


def _learn(row: dict, expected: Expected, checked: Checked) -> None:
    """What an audit row tells of other rows."""
    place = (row["id"], str(row["action"]))
    if row["action"] == STOCK:
        checked.stock = checked.stock or row["id"]
        expected.forget_facts()
    checked.knows_all = checked.knows_all or row["action"] == STOCK or (row["id"] == 1 and bool(row["written"]))
    if isinstance(row["written"], dict):
        for name, digests in row["written"].items():
            expected.wrote(name, digests, *place)
    elif isinstance(row["after"], dict) and (told := facts_of(row)):
        expected.told(*told, *place)


# The rows


def _compare(session: Session, table: type[Base], expected: Expected, checked: Checked) -> None:
    name = table.__tablename__
    for key, values in stored_rows(session, table):
        checked.rows += 1
        if not expected.settle(name, key, digest(values)):
            wrong = _what_is_wrong(table, values, expected.take(name, key), checked.knows_all)
            if wrong:
                checked.findings.add(f"{name} {key}", wrong)
    for told in expected.left(name):
        checked.findings.add(f"{name} {told.key}", f"is gone; {told} tells of it")


def _what_is_wrong(table: type[Base], values: tuple, told: Told | None, knows_all: bool) -> str | None:
    if told is not None and told.digest is not None:
        return _changed(table, values, told)
    if knows_all:
        return "no audit row tells of it; it did not come through this program"
    return "; ".join(misfits(table, values, told.facts if told else {})) or None


def _changed(table: type[Base], values: tuple, told: Told) -> str | None:
    num_columns = len(told.marks) // 4
    if num_columns < len(values) and digest(values[:num_columns]) == told.digest:
        return None  # written before this release's newer columns
    names = ", ".join(differing(table, values, told.marks)) or "a value"
    why = "; ".join(unreadable(table, values))
    return f"{names} not as {told} wrote it" + (f" ({why})" if why else "")


def _check_turns(session: Session, findings: Findings) -> None:
    """Who has a turn comes and goes unsaid; a turn that is done has its annotation, and the other way round."""
    same = and_(Annotation.item_id == Slot.item_id, Annotation.annotator_id == Slot.annotator_id)
    joined = select(Slot.id).outerjoin(Annotation, and_(Annotation.slot_id == Slot.id, same))
    for (slot_id,) in session.execute(joined.where(Slot.state == "done", Annotation.id.is_(None))):
        findings.add(f"slot {slot_id}", "is done, and no annotation of its annotator belongs to it")
    undone = select(Slot.id).join(Annotation, Annotation.slot_id == Slot.id).distinct()
    for (slot_id,) in session.execute(undone.where(or_(Slot.state != "done", ~same))):
        findings.add(f"slot {slot_id}", "is not done, or of somebody else, and has an annotation")


# A collection of the first release


def take_stock(session: Session, actor: str, now: float) -> Checked | None:
    """Has the chain tell of all rows from now on, as they are found; what does not fit by what was known before.

    None where the chain tells of all rows already.
    """
    audit.one_writer(session)
    checked = check(session)
    if checked.knows_all or not checked.audit_rows:
        return None
    audit.append(session, actor, STOCK, "rows", after={"misfits": checked.findings.count}, now=now)
    for table in GUARDED:
        found = {}
        for key, values in stored_rows(session, table):
            found[key] = digest(values) + marks(values)
            if len(found) == AT_ONCE:
                audit.append_written(session, actor, STOCK, {table.__tablename__: found}, now)
                found = {}
        if found:
            audit.append_written(session, actor, STOCK, {table.__tablename__: found}, now)
    return checked

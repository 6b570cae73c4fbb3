"""Who did what, in a chain of hashes: a row that was changed or taken out afterwards shows.

What is missing at the very end cannot show here; a version's manifest may hold the hash of the last row for that.
"""

from sqlalchemy import func, inspect, select
from sqlalchemy.orm import Session

from reward.collect.tables import Annotation, Audit
from rlhf.errors import UserError
from rlhf.hashing import json_sha256

FIRST_PREV_HASH = "0" * 64
WRITERS_LOCK = 0x726C6866  # any number that all servers of a collection share
ENTERED = ("submit", "revise")  # the actions whose object is a new annotation


def one_writer(session: Session) -> None:
    """Waits until no other transaction that is audited is under way. Held to the end of this one.

    Call it before the first read that decides on what is written. SQLite has one writer at a time anyway.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(WRITERS_LOCK)))


def append(
    session: Session,
    actor: str,
    action: str,
    object: str,
    before: dict | None = None,
    after: dict | None = None,
    request_id: str = "",
    *,
    now: float,
) -> Audit:
    """Adds a row to the chain. actor: an annotator's id, or "command line"."""
    one_writer(session)
    last = session.execute(select(Audit.id, Audit.hash).order_by(Audit.id.desc()).limit(1)).first()
    last_id, prev_hash = last or (0, FIRST_PREV_HASH)
    said = {"actor": actor, "action": action, "object": object, "before": before, "after": after}
    row = Audit(id=last_id + 1, at=float(now), request_id=request_id, prev_hash=prev_hash, **said)
    row.hash = row_sha256(row)
    session.add(row)
    session.flush()
    return row


def append_annotation(
    session: Session, actor: str, action: str, annotation: Annotation, replaces: str | None, request_id: str, now: float
) -> Audit:
    """The audit row of a new annotation. It holds the annotation's hash, by which verify() sees a later change.

    action: one of ENTERED. replaces: id of the annotation that this one is a revision of.
    """
    after = {"item": annotation.item_id, "revision": annotation.revision, "sha256": row_sha256(annotation)}
    before = {"annotation": replaces} if replaces else None
    return append(session, actor, action, annotation.id, before, after, request_id, now=now)


def row_sha256(row: Audit | Annotation) -> str:
    """Digest of all columns of a row but `hash`."""
    columns = (attribute.key for attribute in inspect(type(row)).column_attrs)
    return json_sha256({name: getattr(row, name) for name in columns if name != "hash"})


def last_hash(session: Session) -> str:
    """The hash that stands for the whole chain so far."""
    return session.scalar(select(Audit.hash).order_by(Audit.id.desc()).limit(1)) or FIRST_PREV_HASH


# Verification


def verify(session: Session) -> int:
    """How many audit rows there are. Raises UserError that names the first row that is not as it was written."""
    entered, num_rows, prev_hash = {}, 0, FIRST_PREV_HASH
    for row in session.scalars(_streamed(select(Audit).order_by(Audit.id))):
        num_rows += 1
        _check_link(row, num_rows, prev_hash)
        prev_hash = row.hash
        if row.action in ENTERED:
            entered[row.object] = (row.id, row.after["sha256"])
    _check_annotations(session, entered)
    return num_rows


def _check_link(row: Audit, expected_id: int, prev_hash: str) -> None:
    if row.id != expected_id:
        raise UserError(f"audit row {expected_id}: was taken out; the collection has been changed from outside")
    if row.prev_hash != prev_hash:
        raise UserError(f"audit row {row.id}: does not follow row {row.id - 1}; one of the two has been changed")
    if row.hash != row_sha256(row):
        raise UserError(f"audit row {row.id}: has been changed since it was written ({row.action} {row.object})")


def _check_annotations(session: Session, entered: dict[str, tuple[int, str]]) -> None:
    for annotation in session.scalars(_streamed(select(Annotation).order_by(Annotation.submitted_at, Annotation.id))):
        row_id, sha256 = entered.pop(annotation.id, (None, None))
        if row_id is None:
            raise UserError(f"annotation {annotation.id}: no audit row tells of it; it did not come through the server")
        if sha256 != row_sha256(annotation):
            raise UserError(f"annotation {annotation.id}: has been changed since audit row {row_id} was written")
    if entered:
        annotation_id, (row_id, _) = min(entered.items(), key=lambda item: item[1])
        raise UserError(f"annotation {annotation_id}: is gone; audit row {row_id} tells that it was entered")


def _streamed(query):
    return query.execution_options(yield_per=500, populate_existing=True)

"""Who did what, in a chain of hashes: each row names what its step wrote, and carries the hash of the row before.

What the chain can show and what it cannot is in docs/collect.md; verify.py looks.
"""

import json
from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from reward.collect.store import recording
from reward.collect.store.audit_key import AuditKey, audit_key, chain_hash, key_after, keyed_as
from reward.collect.store.tables import Annotation, Audit
from rlhf.files import plain

FIRST_PREV_HASH = "0" * 64
WRITERS_LOCK = 0x726C6866  # any number that all servers of a collection share
HASHED = ("id", "at", "actor", "action", "object", "before", "after", "request_id", "prev_hash")
SERVER = "server"  # the actor of what no step tells of by itself, and nobody asked for in so many words
KEY_BEGINS = "audit key"  # the action of the first row under a key, where rows without one came before


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
    """Adds a row to the chain. It tells of all that was written since the row before.

    actor: an annotator's id, or "command line".
    """
    one_writer(session)
    session.flush()
    said = {"actor": actor, "action": action, "object": object, "before": before, "after": after}
    return _add(session, said | {"request_id": request_id, "at": float(now)}, recording.take(session))


def _add(session: Session, said: dict, written: dict | None) -> Audit:
    last_id, prev_hash = _last(session) or (0, FIRST_PREV_HASH)
    key = audit_key() if said["action"] == KEY_BEGINS else key_after(prev_hash if last_id else None)
    row = Audit(id=last_id + 1, written=written, prev_hash=prev_hash, **said)
    row.hash = row_hash(vars(row), key)
    session.add(row)
    session.flush()
    return row


def append_annotation(
    session: Session, actor: str, action: str, annotation: Annotation, replaces: str | None, request_id: str, now: float
) -> Audit:
    """The audit row of a new annotation. replaces: id of the annotation that this one is a revision of."""
    after = {"item": annotation.item_id, "revision": annotation.revision}
    before = {"annotation": replaces} if replaces else None
    return append(session, actor, action, annotation.id, before, after, request_id, now=now)


def append_rest(session: Session, now: float) -> None:
    """Adds a row for what was written since the last one, if anything was: nothing gets into the tables unsaid."""
    session.flush()
    if session.info.get("written"):
        one_writer(session)
        if written := recording.take(session):
            append_written(session, SERVER, "write", written, now)


def append_written(session: Session, actor: str, action: str, written: dict, now: float) -> None:
    """Adds a row that tells of these rows alone: table -> key -> digest."""
    names = {"actor": actor, "action": action, "object": "rows", "before": None, "after": None, "request_id": ""}
    _add(session, names | {"at": float(now)}, written)


def row_hash(row: Mapping, key: AuditKey | None) -> str:
    """The hash of an audit row. Rows of the first release said nothing of what was written."""
    said = {name: row[name] for name in HASHED} | ({} if row["written"] is None else {"written": row["written"]})
    return chain_hash(json.dumps(plain(said), sort_keys=True, separators=(",", ":"), allow_nan=False), key)


def last_hash(session: Session) -> str:
    """The hash that stands for the whole chain so far."""
    last = _last(session)
    return last.hash if last else FIRST_PREV_HASH


def _last(session: Session):
    return session.execute(select(Audit.id, Audit.hash).order_by(Audit.id.desc()).limit(1)).first()


# The key


def require_key(session: Session) -> None:
    """Raises UserError unless this environment can go on with the chain."""
    last = _last(session)
    key_after(last.hash if last else None)


def begin_key(session: Session, actor: str, now: float) -> str | None:
    """Goes on under the key in the environment, where the chain has none; the key's fingerprint, if it begins here."""
    last, key = _last(session), audit_key()
    if key is None or last is None or keyed_as(last.hash) is not None:
        require_key(session)
        return None
    append(session, actor, KEY_BEGINS, key.fingerprint, now=now)
    return key.fingerprint

"""What a row of a guarded table was: a digest of its columns as the database holds them, and a mark of each column.

Guarded is whatever decides on what is exported, or on who may do what. The digest tells that a row was changed, the
marks tell where.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import JSON, Column, Select, Text, cast, select, tuple_
from sqlalchemy.orm import Session

from reward.collect.store import tables
from reward.collect.store.tables import Base
from rlhf.hashing import text_sha256

# The columns of each that count. New ones go to the end: a digest says of how many columns it is.
GUARDED: dict[type[Base], tuple[str, ...]] = {
    tables.Collection: ("id", "name", "settings", "seed", "pseudonym_key", "origin", "created_at"),
    tables.Guidelines: ("version", "text", "created_at"),
    tables.Annotator: ("id", "handle", "role", "password_hash", "status", "created_at"),
    tables.Invite: ("sha256", "role", "created_at", "expires_at", "used_at", "annotator_id"),
    tables.Token: ("id", "annotator_id", "sha256", "prefix", "scopes", "created_at", "expires_at", "revoked_at"),
    tables.Prompt: ("id", "external_id", "messages", "group_key", "content_sha256", "created_at"),
    tables.Response: ("id", "prompt_id", "text", "sources", "content_sha256", "created_at"),
    tables.Item: (
        *("id", "prompt_id", "response_ids", "content_sha256", "kind", "state", "gold_ranks", "repeat_of"),
        *("comparison", "priority", "meta", "created_at"),
    ),
    tables.Slot: ("id", "item_id", "n"),  # who has it comes and goes; verify.py holds it against the annotations
    tables.Skip: ("item_id", "annotator_id", "reason", "at"),
    tables.Flag: ("id", "item_id", "response_id", "annotator_id", "reason", "note", "at"),
    tables.Annotation: (
        *("id", "slot_id", "revision", "item_id", "annotator_id", "display_order", "ranks", "unacceptable"),
        *("not_rankable", "ratings", "comment", "demonstration", "guidelines_version", "started_at", "submitted_at"),
        *("active_seconds", "client", "idempotency_key", "body_sha256"),
    ),
    tables.Version: ("seq", "manifest_sha256", "counts", "created_by", "created_at"),
}
AT_ONCE = 400  # keys in one question to the database
MARK = 4  # characters


def key_columns(table: type[Base]) -> list[Column]:
    return list(table.__table__.primary_key)


def key_of(key: Iterable) -> str:
    """A row's key as the audit and messages name it."""
    return " ".join(str(part) for part in key)


def as_stored(table: type[Base], columns: Sequence[str]) -> Select:
    """The key of each row, then these columns as the database holds them: JSON as its text."""
    own = table.__table__.c
    shown = [cast(own[name], Text) if isinstance(own[name].type, JSON) else own[name] for name in columns]
    return select(*key_columns(table), *shown)


def stored_rows(session: Session, table: type[Base], *where) -> Iterator[tuple[str, tuple]]:
    """(key, values of the guarded columns) of each row, by key; reads 500 rows at a time."""
    num_keys = len(key_columns(table))
    rows = as_stored(table, GUARDED[table]).where(*where).order_by(*key_columns(table))
    for row in session.execute(rows, execution_options={"yield_per": 500}):
        yield key_of(row[:num_keys]), tuple(row[num_keys:])


def digest(values: Sequence) -> str:
    """Of the values of a row. Whatever a damaged database holds has one."""
    return text_sha256(_shown(list(values)))


def marks(values: Sequence) -> str:
    """Four hex digits for each value: enough to tell which was changed, once the digest tells that one was."""
    return "".join(f"{zlib.crc32(_shown(value).encode()) & 0xFFFF:04x}" for value in values)


def differing(table: type[Base], values: Sequence, old_marks: str) -> list[str]:
    """The columns whose values have other marks."""
    new = marks(values)
    places = range(0, len(old_marks), MARK)
    return [GUARDED[table][i // MARK] for i in places if new[i : i + MARK] != old_marks[i : i + MARK]]


def parsed(table: type[Base], values: Sequence) -> dict:
    """Column -> value; where a JSON column holds no JSON, its text."""
    is_json = [isinstance(table.__table__.c[name].type, JSON) for name in GUARDED[table]]
    return {
        name: json_or_text(value) if json_ else value
        for name, value, json_ in zip(GUARDED[table], values, is_json, strict=True)
    }


def json_or_text(text):
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def unreadable(table: type[Base], values: Sequence) -> list[str]:
    """The columns that hold what cannot be read, and why."""
    row, wrong = dict(zip(GUARDED[table], values, strict=True)), []
    for name, value in row.items():
        if isinstance(value, bytes) or (isinstance(value, str) and not is_utf8(value)):
            wrong.append(f"{name} is no UTF-8")
        elif isinstance(table.__table__.c[name].type, JSON) and value is not None and not is_json_text(value):
            wrong.append(f"{name} is no JSON")
    return wrong


def is_utf8(text: str) -> bool:
    """Whether none of its bytes had to be read as half a character: see verify.any_bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_json_text(text) -> bool:
    try:
        json.loads(text)
        return True
    except (ValueError, TypeError):
        return False


def written_digests(session: Session, table: type[Base], keys: Iterable[tuple]) -> dict[str, str]:
    """Key -> digest and marks of the rows that are there."""
    found, keys = {}, list(keys)
    for first in range(0, len(keys), AT_ONCE):
        for key, values in stored_rows(session, table, _has_key(table, keys[first : first + AT_ONCE])):
            found[key] = digest(values) + marks(values)
    return found


def _has_key(table: type[Base], keys: Sequence[tuple]):
    columns = key_columns(table)
    return columns[0].in_([key[0] for key in keys]) if len(columns) == 1 else tuple_(*columns).in_(keys)


def _shown(value) -> str:
    return json.dumps(value, separators=(",", ":"), default=repr)

"""Rows that no digest is known of, as the first release wrote them: what their hashes and the audit's words tell.

That is all that can be known of them: a changed gold ranking or source, a deleted flag or slot does not show.
"""

from reward.collect.ranking.items import content_sha256
from reward.collect.store import tables
from reward.collect.store.row_digests import parsed, unreadable
from reward.collect.store.tables import Base
from rlhf.hashing import json_sha256, text_sha256

ENTERED = ("submit", "revise")  # the actions whose object is a new annotation


def facts_of(row: dict) -> tuple[str, str, dict] | None:
    """(table, key, facts) that an audit row without digests tells: column -> value, or `sha256` of all or of a text."""
    action, object, after = row["action"], row["object"], row["after"] or {}
    if action in ENTERED:
        return "annotation", object, {"sha256": after.get("sha256")}
    if action == "accept_invite":
        return "annotator", object, {"handle": after.get("handle"), "role": after.get("role")}
    if action == "set_status":
        return "annotator", object, {"status": after.get("status")}
    if action == "guidelines":
        return "guidelines", object, {"sha256": after.get("sha256")}
    if action == "skip":
        return "skip", f"{object} {row['actor']}", {"reason": after.get("reason")}
    if action == "invite":
        return "invite", object, {"role": after.get("role")}
    if action == "create_token":
        return "token", object, {"annotator_id": after.get("annotator"), "scopes": after.get("scopes")}
    if action == "export version":
        return "version", object, {"manifest_sha256": after.get("manifest_sha256")}
    if action in ("init", "change settings"):
        return "collection", "1", after
    return None


def misfits(table: type[Base], values: tuple, facts: dict) -> list[str]:
    """What does not fit in a row, by its own content hash and by facts_of()."""
    row = parsed(table, values)
    return unreadable(table, values) + _against_hash(table, row) + _against(table, row, facts)


def _against_hash(table: type[Base], row: dict) -> list[str]:
    hashed = {tables.Prompt: ("messages", json_sha256), tables.Response: ("text", text_sha256)}
    hashed[tables.Item] = ("response_ids", content_sha256)
    name, hash_of = hashed.get(table, (None, None))
    if name is None or _tried(hash_of, row[name]) == row["content_sha256"]:
        return []
    return [f"{name} does not fit content_sha256"]


def _against(table: type[Base], row: dict, facts: dict) -> list[str]:
    facts = dict(facts)
    wrong = []
    if (sha256 := facts.pop("sha256", None)) is not None:
        found = _tried(json_sha256, row) if table is tables.Annotation else _tried(text_sha256, row["text"])
        wrong += ["it is not what the audit tells of"] if found != sha256 else []
    known = row | row["settings"] if table is tables.Collection and isinstance(row["settings"], dict) else row
    return wrong + [f"{name} is not what the audit says" for name, value in facts.items() if known.get(name) != value]


def _tried(hash_of, value) -> str | None:
    """The hash of what may be anything in a damaged database."""
    try:
        return hash_of(value)
    except (TypeError, ValueError, AttributeError):
        return None

"""What people type in, checked before it is stored; and a word for what is told."""

import json
import re

from reward.collect.refusals import Refusal

MAX_TOLD = 20  # of things that are wrong, one a line; the rest are counted
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # no database and no tokenizer takes these


def clean_text(value, field: str, limit: int, *, required: bool = False) -> str:
    """The text with newlines as \\n, or a Refusal that names the field. None is no text."""
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise _refused(field, f"must be a text, not {type(value).__name__}")
    if len(value) > limit:
        raise _refused(field, f"has {len(value)} characters; at most {limit} are kept, shorten it")
    if _NOT_TEXT.search(value):
        raise _refused(field, "has a NUL or half a character in it; type it again")
    if required and not value.strip():
        raise _refused(field, "is empty; say it in a few words")
    return value.replace("\r\n", "\n").replace("\r", "\n")


def is_text(value) -> bool:
    """True for a string that can be stored."""
    return isinstance(value, str) and not _NOT_TEXT.search(value)


def is_json(value, limit: int) -> bool:
    """True for what JSON of so many characters can hold, and the database too."""
    try:
        return len(json.dumps(value, allow_nan=False)) <= limit and all_text(value)
    except (ValueError, TypeError, RecursionError):
        return False


def all_text(value) -> bool:
    """True where all strings of a JSON value can be stored."""
    if isinstance(value, dict):
        return all(all_text(key) and all_text(one) for key, one in value.items())
    return all(map(all_text, value)) if isinstance(value, list) else not isinstance(value, str) or is_text(value)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _refused(field: str, what: str) -> Refusal:
    return Refusal(f"{field} {what}", {field: what})

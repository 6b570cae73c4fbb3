"""Raw rows of a data file as values: strict JSON, valid text, one line for what is not."""

import json
import math
import re

from rlhf.data.files import MAX_LINE_BYTES, is_cut, not_utf8
from rlhf.errors import UserError, first_line

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_NOT_A_LINE = (
    "An object over several lines is not read; write one record a line, or one array: jq -c . FILE, or of a list in "
    "the object, e.g. one named data, jq -c '.data[]' FILE"
)


class RecordError(UserError):
    """One bad record. `rule` is the message less what differs from record to record: the data report counts by it."""

    def __init__(self, where: str, message: str, rule: str | None = None):
        super().__init__(f"{where}: {message}")
        self.rule = rule or message


def decode(raw: bytes | dict | list, where: str, remedy: str = "Fix the line or set data.on_error=skip") -> dict:
    """The values of a raw row (see files.py). remedy: for what is not JSON."""
    if isinstance(raw, bytes):
        return _decode_line(raw, where, remedy)
    if isinstance(raw, list):
        raise RecordError(where, f"the row has {len(raw)} cells, not one for each column of the header", "uneven row")
    try:
        _check_text(raw)
    except ValueError as error:
        raise RecordError(where, str(error)) from None
    return raw


def _decode_line(line, where, remedy):
    text = _decode_utf8(line, where)
    try:
        values = _JSON.decode(text)
        if "\\u" in text:  # only an escape can bring in what UTF-8 cannot hold
            _check_text(values)
    except json.JSONDecodeError as error:
        if text.strip() in ("{", "}"):
            remedy = _NOT_A_LINE
        raise _not_json(f"{where}:{error.colno}", error.msg, remedy) from None
    except (ValueError, RecursionError) as error:
        raise _not_json(where, first_line(error), remedy) from None
    if not isinstance(values, dict):
        raise RecordError(where, f"a record must be a JSON object, not {kind_of(values)}")
    return values


def _not_json(where, reason, remedy):
    return RecordError(where, f"not valid JSON ({reason}). {remedy}", "not valid JSON")


def _decode_utf8(line, where):
    if is_cut(line):
        raise RecordError(where, f"the line is longer than {MAX_LINE_BYTES // 2**20} MB; is it one record a line?")
    if line.startswith(b"\xef\xbb\xbf"):
        raise RecordError(where, "begins with a byte order mark in the middle of the file; take it out")
    if (column := line.find(b"\0") + 1) > 0:
        is_utf16 = column <= 2 and line.count(b"\0") > len(line) // 3
        what = "is this UTF-16? Save it as UTF-8" if is_utf16 else "is this a text file?"
        raise RecordError(where, f"NUL byte at column {column}; {what}", "NUL byte")
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        message = not_utf8(line[error.start], f" at column {error.start + 1}")
        raise RecordError(where, message, "not UTF-8") from None


def _check_text(value):
    """Raises ValueError where a string holds what a tokenizer or a file cannot: NUL, or half of a surrogate pair."""
    if isinstance(value, str):
        if _NOT_TEXT.search(value):
            raise ValueError("a string has a NUL character or a lone surrogate (\\ud800 to \\udfff) in it")
    elif isinstance(value, list | dict):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_text(item)


def _finite(literal):
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"{literal[:20]} is not a finite number")
    return number


def _without_repeats(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name is given twice in one object")
    return values


def decode_json(text: str):
    """The value of a JSON text. Raises ValueError for what is none, NaN, or a name that is given twice."""
    return _JSON.decode(text)


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_repeats)


def kind_of(value) -> str:
    names = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def shown(names) -> str:
    """Names from a file for an error message: at most eight, none of which can break the line or the terminal."""
    listed = [name if name.isprintable() else ascii(name) for name in map(str, names)]
    return ", ".join(name[:40] for name in listed[:8]) + (", ..." if len(listed) > 8 else "")

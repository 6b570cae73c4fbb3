"""Rows in, from any source: checked values with the place they came from, so that every error can name it."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.config import OnError
from rlhf.data_files import MAX_LINE_BYTES, first_line, is_cut, not_utf8
from rlhf.data_report import DataReport
from rlhf.errors import UserError
from rlhf.sources import open_source

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
# Our names for what a record holds: what data.fields may map, and what a remedy does not offer as a missing field.
FIELDS = ("prompt", "completion", "response", "messages", "text", "group", "responses", "ranks", "scores")
FIELDS += ("chosen", "rejected", "margin", "annotator", "weight", "prompt_id", "id", "meta")


class RecordError(UserError):
    """One bad record. `rule` is the message less what differs from record to record: the data report counts by it."""

    def __init__(self, where: str, message: str, rule: str | None = None):
        super().__init__(f"{where}: {message}")
        self.rule = rule or message


@dataclass(frozen=True, slots=True)
class Row:
    values: dict
    where: str  # "file:line", or "file[row]" where there are no lines

    def has(self, name: str) -> bool:
        """True when the field is there and not null."""
        return self.values.get(name) is not None

    def text(self, name: str) -> str:
        """A field that must be a string with something in it."""
        value = self.values.get(name)
        if value is None:
            raise self.missing(name)
        if not isinstance(value, str):
            raise self.error(f"field '{name}' must be a string, not {kind_of(value)}")
        if not value.strip():
            raise self.error(f"field '{name}' is empty")
        return value

    def error(self, message: str, rule: str | None = None) -> RecordError:
        return RecordError(self.where, message, rule)

    def missing(self, name: str) -> RecordError:
        if name in self.values:
            return self.error(f"field '{name}' is null")
        others = [field for field in self.values if field not in FIELDS]
        theirs = shown(others) if len(others) == 1 else "<your name for it>"
        rule = f"field '{name}' is missing"
        return self.error(f"{rule} (found: {shown(self.values)}). Map it with {self.mapping(name, theirs)}", rule)

    def mapping(self, ours: str, theirs: str) -> str:
        """What to write so that `theirs` is read as our field."""
        return f"+data.fields.{ours}={theirs}"


def read_rows(
    path: str, on_error: OnError | str, report: DataReport, kind="rows", fields=None, weight=1.0, parse=lambda row: row
) -> Iterator:
    """parse(row) of every row of `path`, as an iterator; without `parse`, the rows themselves.

    kind: "rankings" where the path is the value of data.rankings. fields: our name -> theirs.
    A bad record (of the file, or by `parse`) raises UserError, or with on_error=skip is counted in the report.
    A source without one good record is an error either way.
    """
    fields = dict(fields or {})
    _check_fields(fields)
    raw_rows, sha256 = open_source(path, f"data.{kind}")
    source, first_error = report.start_source(kind, path, weight, sha256), None
    for where, raw in raw_rows:
        try:
            record = parse(Row(_renamed(decode(raw, where), fields), where))
        except UserError as error:
            if OnError(on_error) is OnError.error:
                raise
            first_error = first_error or error
            source.skipped += 1
            report.find("skipped", where, getattr(error, "rule", str(error).removeprefix(f"{where}: ")))
            continue
        source.records += 1
        yield record
    _check_not_empty(source, first_error)


def _check_not_empty(source, first_error):
    if source.records == 0 and first_error is None:
        raise UserError(f"{source.path}: the source is empty (0 records); need at least 1")
    if source.records == 0:
        raise UserError(
            f"data.{source.kind}={source.path}: all {source.skipped} records are bad. The first: {first_error}"
        )


def _check_fields(fields):
    for ours in fields:
        if ours not in FIELDS:
            raise UserError(f"data.fields.{ours}: '{ours}' is not a field of ours; map one of {', '.join(FIELDS)}")


def _renamed(values, fields):
    """The values under our names as well; a source in a mixture that has not their name keeps its own."""
    if not fields:
        return values
    return {**values, **{ours: values[theirs] for ours, theirs in fields.items() if theirs in values}}


def decode(raw: bytes | dict | list, where: str, remedy: str = "Fix the line or set data.on_error=skip") -> dict:
    """The values of a raw row (see data_files.py). remedy: for what is not JSON."""
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
            remedy = "An object over several lines is not read; write one record a line (jq -c . FILE), or one array"
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


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite, object_pairs_hook=_without_repeats)


def kind_of(value) -> str:
    names = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def shown(names) -> str:
    """Names from a file for an error message: at most eight, none of which can break the line or the terminal."""
    listed = [name if name.isprintable() else ascii(name) for name in map(str, names)]
    return ", ".join(name[:40] for name in listed[:8]) + (", ..." if len(listed) > 8 else "")

"""Rows in, from any source: checked values with the place they came from, so that every error can name it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rlhf.columns import Fields, as_ours, check_fields, likely_name, not_used
from rlhf.config import OnError
from rlhf.data_report import DataReport
from rlhf.decoding import RecordError, decode, kind_of, shown
from rlhf.errors import UserError
from rlhf.sources import open_source

# Of the file beside this one; whoever reads records finds them here.
__all__ = ["RecordError", "Row", "decode", "kind_of", "read_rows", "shown", "whole"]

_PLAIN_NAME = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Row:
    values: dict
    where: str  # "file:line", or "file[row]" where there are no lines
    notes: list[str] = field(default_factory=list, compare=False)  # what was read as what, for the data report

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

    def without(self, *names: str) -> "Row":
        """The row less these fields."""
        return replace(self, values={name: value for name, value in self.values.items() if name not in names})

    def missing(self, name: str, needed: str = "") -> RecordError:
        """needed: what a record of the kind must have, where it has none of it."""
        if name in self.values:
            return self.error(f"field '{name}' is null")
        theirs = likely_name(name, self.values) or "<your name for it>"
        rule = f"field '{name}' is missing"
        found = f"(found: {shown(self.values)})" + (f"; {needed}" if needed else "")
        return self.error(f"{rule} {found}. Map it with {self.mapping(name, theirs)}", rule)

    def mapping(self, ours: str, theirs: str | None) -> str:
        """What to write so that `theirs` is read as our field; None: so that a column of our name is not read."""
        if theirs is None or _PLAIN_NAME.fullmatch(theirs) or theirs.startswith("<"):
            return f"+data.fields.{ours}={theirs or 'null'}"
        return f"\"+data.fields.{ours}='{shown([theirs])}'\""

    def note(self, what: str) -> None:
        """Says in the data report what was read as what, or left aside."""
        self.notes.append(what)


def read_rows(
    path: str,
    on_error: OnError | str,
    report: DataReport,
    kind="rows",
    fields: Fields | None = None,
    weight=1.0,
    parse=lambda row: row,
) -> Iterator:
    """parse(row) of every row of `path`, as an iterator; without `parse`, the rows themselves.

    kind: "rankings" where the path is the value of data.rankings. fields: our name -> theirs.
    A bad record (of the file, or by `parse`) raises UserError, or with on_error=skip is counted in the report.
    A source without one good record is an error either way.
    """
    fields = dict(fields or {})
    check_fields(fields)
    raw_rows, sha256 = open_source(path, f"data.{kind}")
    source, first_error = report.start_source(kind, path, weight, sha256), None
    for where, raw in raw_rows:
        try:
            ours = as_ours(decode(raw, where), where, kind, fields)
            row = Row(ours.values, where, ours.notes)
            record = parse(row)
        except UserError as error:
            if OnError(on_error) is OnError.error:
                raise
            first_error = first_error or error
            source.skipped += 1
            report.find("skipped", where, getattr(error, "rule", str(error).removeprefix(f"{where}: ")))
            continue
        source.records += 1
        source.leave_out(map(_printable, not_used(ours, kind)))
        for note in row.notes:
            report.find("read_as", where, note)
        yield record
    _check_not_empty(source, first_error)


def _printable(name):
    return shown([name])


def _check_not_empty(source, first_error):
    if source.records == 0 and first_error is None:
        raise UserError(f"{source.path}: the source is empty (0 records); need at least 1")
    if source.records == 0:
        raise UserError(
            f"data.{source.kind}={source.path}: all {source.skipped} records are bad. The first: {first_error}"
        )


def whole(value):
    """A whole number that a table gave as a float, e.g. 3.0, as an int; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value

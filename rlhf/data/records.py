"""Rows in, from any source: what is bad is an error or is counted, and what nothing reads is counted by name."""

from collections.abc import Iterator

from rlhf.config.schema import OnError
from rlhf.data.columns import Fields, as_ours, check_fields, not_used
from rlhf.data.decoding import RecordError, decode, kind_of, shown
from rlhf.data.files import Cells
from rlhf.data.report import DataReport
from rlhf.data.row import Row, whole
from rlhf.data.sources import open_source
from rlhf.errors import UserError

# Of the files beside this one; whoever reads records finds them here.
__all__ = ["RecordError", "Row", "decode", "kind_of", "read_rows", "shown", "whole"]


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
            row = as_ours(Row(decode(raw, where), where), kind, fields, isinstance(raw, Cells))
            record = parse(row)
        except UserError as error:
            if OnError(on_error) is OnError.error:
                raise
            first_error = first_error or error
            source.skipped += 1
            report.find("skipped", where, getattr(error, "rule", str(error).removeprefix(f"{where}: ")))
            continue
        source.records += 1
        source.leave_out(map(_printable, not_used(row, kind)))
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

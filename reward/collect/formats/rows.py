"""Records of files made elsewhere, as rows whose errors speak of the file, not of a config."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.data.columns import Fields, as_ours
from rlhf.data.files import Cells
from rlhf.data.records import RecordError, Row, decode
from rlhf.data.sources import open_source
from rlhf.files import read_json

Located = tuple[str, Any]  # ("file:line" or "file[index]", a line as bytes | a value that was read)


class ImportRow(Row):
    """A row of the import command, which maps names with --field."""

    __slots__ = ()

    def mapping(self, ours: str, theirs: str | None) -> str:
        return f"--ignore {ours}" if theirs is None else f"--field {ours}={theirs}"


def line_records(path: str | Path) -> Iterator[Located]:
    """The raw records of whatever a source of the stages may be (rlhf/data/sources.py)."""
    return open_source(str(path), "import")[0]


def array_records(path: str | Path) -> Iterator[Located]:
    """The values of a file with one JSON array, or {"items": [...]}, as annotation tools export; or of a JSONL file."""
    if str(path).lower().endswith((".jsonl", ".jsonl.gz")):
        yield from line_records(path)
        return
    values = read_json(Path(path))
    values = values.get("items") if isinstance(values, dict) else values
    if not isinstance(values, list):
        raise RecordError(str(path), "must be a JSON array of records, or JSON lines in a file named .jsonl")
    yield from ((f"{path}[{i}]", value) for i, value in enumerate(values))


def decoded(
    raw: Any, where: str, kind: str = "theirs", fields: Fields | None = None, notes: list[str] | None = None
) -> ImportRow:
    """The row of a raw record. Raises RecordError for what is not a JSON object of valid text.

    kind: "rankings" where it is read by our names and their common variants, as the stages do it.
    fields: our name -> theirs, None for a column that only has the name of one of ours. notes: where the row's go.
    """
    if not isinstance(raw, bytes | dict | list):
        raise RecordError(where, f"a record must be a JSON object, not {type(raw).__name__}")
    row = ImportRow(decode(raw, where, remedy="Fix the line"), where, [] if notes is None else notes)
    return as_ours(row, kind, fields or {}, isinstance(raw, Cells))

"""The raw rows of one data file: lines of JSON, a JSON array, a table of texts (CSV, TSV) or Parquet.

The name says what a file should be, its first bytes what it is. A raw row is (where, row); a row is a line as bytes,
a dict that a library has read, or, of a table of texts, `Cells` or (where they do not fit the header) a list.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf.errors import ArtifactError, UserError, first_line

MAX_LINE_BYTES = 16 * 2**20
MAX_ARRAY_BYTES = 2**30  # an array is held in memory as a whole
TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
FILE_SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")
READ = f"{', '.join(TEXT_SUFFIXES)} (also with .gz), .parquet"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_KINDS = {  # first bytes -> what the file is, and what to do
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8, e.g. iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8, e.g. iconv -f utf-16 -t utf-8",
    b"\x1f\x8b": "is compressed twice with gzip; unpack it once",
    b"PAR1": "is a Parquet file; let its name end in .parquet",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or save it as CSV",
    b"BZh": "is compressed with bzip2; unpack it",
    b"\xfd7zXZ": "is compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
}
_TOO_LARGE = f"is a JSON array of over {MAX_ARRAY_BYTES // 2**30} GB; write one record a line (jq -c '.[]' FILE)"
_DELIMITERS = "A .csv is divided by commas, a .tsv by tabs"
_SPACE = re.compile(r"\s*")
_scan = json.JSONDecoder().raw_decode  # finds the end of an element; whoever decodes it is stricter


class Cells(dict):
    """A row of a table of texts: what is not text in it is written as JSON. An empty cell is None."""


@contextmanager
def readable(path: str):
    """One line for whatever a library raises on a damaged or forbidden file: they promise no set of exceptions."""
    try:
        yield
    except (UserError, ArtifactError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path}: cannot be read ({reason}). Is the file complete, and may you read it?") from error


def is_cut(line: bytes) -> bool:
    """True of the first MAX_LINE_BYTES of a longer line."""
    return len(line) > MAX_LINE_BYTES and not line.endswith(b"\n")


def read_file(path: str, local: str) -> Iterator[tuple]:
    """The raw rows of a file. path: as the user named it, for messages; local: where it is."""
    name = local.lower()
    if not name.endswith(FILE_SUFFIXES):
        raise UserError(f"{path}: this kind of file is not read; use {READ}, or a folder of these")
    if name.endswith(".parquet"):
        return _read_parquet(path, local)
    suffix = "." + name.removesuffix(".gz").rsplit(".", 1)[1]
    return _read_table(path, local, DELIMITERS[suffix]) if suffix in DELIMITERS else _read_json(path, local)


@contextmanager
def _opened(path, local):
    """The bytes of a text file from after its byte order mark, unpacked where it is gzip, by name or by content."""
    with readable(path), open(local, "rb") as plain:
        is_gzip = local.lower().endswith(".gz") or plain.peek(2).startswith(b"\x1f\x8b")
        with io.BufferedReader(gzip.GzipFile(fileobj=plain)) if is_gzip else plain as file:
            start = file.peek(len(UTF8_BOM))
            for first_bytes, kind in _OTHER_KINDS.items():
                if start.startswith(first_bytes):
                    raise UserError(f"{path}: {kind}")
            if start.startswith(UTF8_BOM):
                file.read(len(UTF8_BOM))
            yield file


# JSON


def _read_json(path, local):
    """(path:line, a line, or an element of an array where the file begins with one). Blank lines are left out."""
    with _opened(path, local) as file:
        lines = _lines(file)
        number, line = next(lines, (0, b""))
        if line.lstrip().startswith(b"["):
            yield from _elements(path, number, line + file.read(MAX_ARRAY_BYTES + 1))
        elif line:
            yield f"{path}:{number}", line
            yield from ((f"{path}:{number}", line) for number, line in lines)


def _lines(file):
    """(number, line) of every line that is not blank. An over-long line comes cut, for the decoder to refuse."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if line.strip():
            yield number, line
        if is_cut(line):
            _skip_rest_of_line(file)


def _skip_rest_of_line(file):
    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


def _elements(path, first, content):
    """(path:line, element as bytes) of the array that begins in line `first`: from here on as JSON lines are."""
    if len(content) > MAX_ARRAY_BYTES:
        raise UserError(f"{path}: {_TOO_LARGE}")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = first + content.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: {not_utf8(content[error.start])}") from None
    line, counted = first, 0
    for begin, end in _spans(text, lambda place: f"{path}:{first + text.count(chr(10), 0, place)}"):
        line, counted = line + text.count("\n", counted, begin), begin
        yield f"{path}:{line}", text[begin:end].encode()


def not_utf8(byte: int, place: str = "") -> str:
    return f"byte 0x{byte:02x}{place} is not UTF-8; if it is in a Windows encoding: iconv -f windows-1252 -t utf-8"


def _spans(text, where):
    """(begin, end) of each element of the array that a text is. where: place -> path:line, for messages."""
    place = _next(text, text.index("[") + 1)
    while not text.startswith("]", place):
        end = _end_of_element(text, place, where)
        yield place, end
        place = _next(text, end)
        if text.startswith(",", place):
            place = _next(text, place + 1)
        elif not text.startswith("]", place):
            raise UserError(f"{where(place)}: not valid JSON (after an element of an array comes , or ])")
    if text[place + 1 :].strip():
        raise UserError(f"{where(place)}: more comes after the end of the array; give one array, or one record a line")


def _next(text, place):
    """The place of the next character that is not white space."""
    return _SPACE.match(text, place).end()


def _end_of_element(text, place, where):
    try:
        return _scan(text, place)[1]
    except json.JSONDecodeError as error:
        reason = f"not valid JSON ({error.msg}), so the rest of the array cannot be read"
        raise UserError(f"{where(error.pos)}:{error.colno}: {reason}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where(place)}: not valid JSON ({first_line(error)})") from None


# Tables of texts


def _read_table(path, local, delimiter):
    """(path:line, cells by their column). A row that does not fit the header comes as a list, for the decoder."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with _opened(path, local) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        rows = _table_rows(path, csv.reader(text, delimiter=delimiter, strict=True))
        header = _header(path, next(rows, (path, []))[1])
        for where, cells in rows:
            fits = len(cells) == len(header)
            yield where, Cells(zip(header, (cell or None for cell in cells), strict=True)) if fits else cells


def _table_rows(path, reader):
    """(path:line, cells) of each row that is not blank."""
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: {not_utf8(error.object[error.start])} (near this line)") from None
        except csv.Error as error:
            rule = 'a text with " in it stands between quotes, each " in it doubled'
            raise UserError(f"{where}: this row cannot be read ({first_line(error)}); {rule}") from None
        if cells is None:
            return
        if cells:
            yield where, cells


def _header(path, names):
    """The names of the columns. A nameless one (as pandas writes its index) is named by its place."""
    if len(names) == 1 and (other := next((mark for mark in ";\t," if mark in names[0]), None)):
        raise UserError(f"{path}: the header is one column, {names[0]!r:.60}; divided by {other!r}? {_DELIMITERS}")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: the header names a column twice ({', '.join(names)[:80]})")
    return [name.strip() or f"column {i + 1}" for i, name in enumerate(names)]


# Parquet


def _read_parquet(path, local):
    import pyarrow.parquet

    first = 0
    with readable(path), pyarrow.parquet.ParquetFile(local) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from ((f"{path}[{first + i}]", values) for i, values in enumerate(batch.to_pylist()))
            first += batch.num_rows

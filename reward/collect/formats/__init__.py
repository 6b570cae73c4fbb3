"""Rankings out to other tools and in from them. All goes through the canonical row (canonical.py); each is one file.

What is lost on the way out and back. Every format keeps the prompt and the texts of ranked answers.

| format       | read | keeps besides                                | loses                                           |
|--------------|------|----------------------------------------------|-------------------------------------------------|
| canonical    | yes  | all                                          | nothing                                         |
| parquet      | yes  | all                                          | whether `group` was a number                    |
| trl,         | yes  | ranks, annotator, prompt_id, item_id, margin | answers not ranked, order of the answers,       |
| trl_implicit |      |                                              | group, weight, the rest of meta (1) (2)         |
| hh           | yes  | which of two is better                       | all but pairs of texts; outer white space       |
| openai       | yes  | ranks, annotator, prompt_id, item_id, policy | as trl, margin, rankings that tie all (1)       |
| kto          | no   | which answers are good, which bad            | the order between them                          |
| sft          | no   | answers that people wrote                    | who wrote them                                  |
| csv          | no   | all but ratings                              | the exact text of cells that look like formulas |
| argilla      | only | ranks, user, id                              | other questions, drafts                         |
| label_studio | only | ranks, user id, id, seconds                  | titles, other results                           |

(1) A ranking comes back whole where it has an item_id and strategy is all, adjacent or best_vs_rest; else as pairs.
(2) A ranking that ties all its answers goes out with ties=soft only. style=text loses outer white space of turns.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from reward.collect.formats import argilla, canonical, hh, label_studio, openai, spreadsheet, trl, unpaired
from reward.collect.formats import parquet as parquet_file
from reward.collect.formats.pairs import STRATEGIES, TIES, rejoined
from reward.collect.formats.rows import array_records, decoded, line_records
from reward.collect.refusals import Conflict, Refusal
from rlhf.errors import UserError
from rlhf.files import sync, temporary_name, writing


@dataclass(frozen=True)
class Format:
    """A way to write rows. options: name -> allowed values, the default first; () for any text."""

    write: Callable[..., int]  # (rows, stream, **options) -> number of records
    suffix: str
    media_type: str
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reads: str = "rankings"  # which file of a version it is made from: rankings or demonstrations


@dataclass(frozen=True)
class Reader:
    parse: Callable  # one record -> canonical rows; raises RecordError
    records: Callable = line_records  # path -> raw records
    join: Callable = canonical.unchanged  # all of a file's rows -> rows


def _lines(convert):
    """Writes what `convert` makes of rows as JSON lines."""

    def write_lines(rows: Iterable[dict], stream: BinaryIO, **options) -> int:
        count = 0
        for record in convert(rows, **options):
            stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            count += 1
        return count

    return write_lines


def _jsonl(convert, options=None, reads="rankings"):
    return Format(_lines(convert), ".jsonl", "application/jsonl", options or {}, reads)


_PAIRS = {"strategy": STRATEGIES}
FORMATS: dict[str, Format] = {
    "canonical": _jsonl(canonical.unchanged),
    "trl": _jsonl(trl.to_explicit, {**_PAIRS, "ties": TIES, "style": trl.STYLES}),
    "trl_implicit": _jsonl(trl.to_implicit, {**_PAIRS, "ties": TIES}),
    "hh": _jsonl(hh.to_hh, _PAIRS),
    "openai": _jsonl(openai.to_openai, {**_PAIRS, "batch": ()}),
    "kto": _jsonl(unpaired.to_kto, {"negatives": unpaired.NEGATIVES}),
    "sft": _jsonl(unpaired.to_sft, {"style": unpaired.SFT_STYLES}, reads="demonstrations"),
    "csv": Format(spreadsheet.write_csv, ".csv", "text/csv; charset=utf-8"),
    "parquet": Format(parquet_file.write_parquet, ".parquet", "application/vnd.apache.parquet"),
}
READERS: dict[str, Reader] = {
    "canonical": Reader(canonical.parse),
    "parquet": Reader(canonical.parse),
    "trl": Reader(trl.parse, join=rejoined),
    "trl_implicit": Reader(trl.parse, join=rejoined),
    "hh": Reader(hh.parse),
    "openai": Reader(openai.parse, join=rejoined),
    "argilla": Reader(argilla.parse, array_records),
    "label_studio": Reader(label_studio.parse, array_records),
}


def write(name: str, rows: Iterable[dict], to: str | Path | BinaryIO, /, **options: str) -> int:
    """Writes rows in a format, to a new file or a binary stream; returns the number of records.

    Raises Refusal for an unknown format or option, for what the format cannot hold, and for a file that exists.
    """
    known = require_format(name, FORMATS, "written")
    check_options(name, known.options, options)
    if not isinstance(to, str | os.PathLike):
        return known.write(rows, to, **options)
    path = Path(to)
    require_new(path)
    with writing(path):
        return _write_file(path, lambda stream: known.write(rows, stream, **options))


def require_new(path: Path) -> None:
    if path.exists():
        raise Conflict(f"{path}: is there already; choose another name or move it away")


def _write_file(path, write_to):
    """The file appears under its name when all of it is on the disk."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as stream:
            count = write_to(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return count


def read(name: str, path: str | Path, problems: list[UserError] | None = None) -> Iterator[dict]:
    """The canonical rows of a file in a format.

    A bad record raises UserError that names its place; with a list for `problems` it is put there and left out.
    """
    reader = require_format(name, READERS, "read")
    return iter(reader.join(_parsed(reader, path, problems)))


def _parsed(reader, path, problems):
    for where, raw in reader.records(path):
        try:
            rows = reader.parse(decoded(raw, where))
        except UserError as error:
            if problems is None:
                raise
            problems.append(error)
        else:
            yield from rows


def require_format(name: str, known: dict, done: str):
    if name not in known:
        raise Refusal(f"format '{name}' cannot be {done}; choose one of {', '.join(known)}", {"format": "unknown"})
    return known[name]


def check_options(name: str, allowed: dict[str, tuple[str, ...]], options: dict[str, str]) -> None:
    for option, value in options.items():
        if option not in allowed:
            choices = ", ".join(allowed) or "none"
            raise Refusal(f"format '{name}' has no option '{option}'; it has {choices}", {option: "unknown"})
        if allowed[option] and value not in allowed[option]:
            choices = ", ".join(allowed[option])
            raise Refusal(f"{option} is {value!r}; choose one of {choices}", {option: f"one of {choices}"})

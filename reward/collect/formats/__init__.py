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
| csv          | no   | all but ratings                              | nothing once ' is taken off (spreadsheet.py)    |
| argilla      | only | ranks, user, id                              | other questions, drafts                         |
| label_studio | only | ranks, user id, id, seconds                  | titles, other results                           |
| public sets  | only | see reading.py and docs/rankings.md          | all else                                        |

(1) A ranking comes back whole where it has an item_id and strategy is all, adjacent or best_vs_rest; else as pairs.
(2) style=text loses outer white space of turns.

Rows that a format cannot hold at all are left out and counted: trl, trl_implicit, hh, openai and kto those that tie all
their answers (trl with ties=soft holds them), hh, openai and style=text those with a system turn, or with a text that a
transcript of Human and Assistant would divide.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from reward.collect.formats import canonical, hh, openai, spreadsheet, trl, unpaired
from reward.collect.formats import parquet as parquet_file
from reward.collect.formats.choosing import Allowed, check_options, require_format
from reward.collect.formats.pairs import STRATEGIES, TIES, Votes, why_no_pair
from reward.collect.formats.reading import READERS, read
from reward.collect.refusals import Conflict, Refusal
from reward.collect.store import private
from rlhf.files import sync, writing

__all__ = [
    "FORMATS",
    "READERS",
    "check_options",
    "left_out_of_formats",
    "line",
    "read",
    "reasons",
    "require_format",
    "require_new",
    "write",
]


@dataclass(frozen=True)
class Format:
    """A way to write rows. options: name -> allowed values, the default first; () for any text."""

    write: Callable[..., int]  # (rows, stream, **options) -> number of records
    suffix: str
    media_type: str
    options: Allowed = field(default_factory=dict)
    reads: str = "rankings"  # which file of a version it is made from: rankings or demonstrations
    why_not: Callable[..., str | None] = lambda row, **options: None  # why a row cannot be held, less what cannot be
    weighs: bool = False  # whether `write` takes the votes of all rows, those that are left out too


@dataclass(frozen=True)
class Written:
    """What became of rows. left_out: reason -> rows that the format cannot hold."""

    records: int
    left_out: dict[str, int]


class Held:
    """The rows that a format can hold, each time they are gone through; the others are counted."""

    def __init__(self, rows: Iterable[dict], why_not: Callable[[dict], str | None]):
        self._rows, self._why_not, self.left_out = rows, why_not, Counter()

    def __iter__(self) -> Iterator[dict]:
        self.left_out.clear()
        for row in self._rows:
            if why := self._why_not(row):
                self.left_out[why] += 1
            else:
                yield row


def line(record: dict) -> bytes:
    """A record of a JSONL file."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _lines(convert):
    """Writes what `convert` makes of rows as JSON lines."""

    def write_lines(rows: Iterable[dict], stream: BinaryIO, **options) -> int:
        count = 0
        for record in convert(rows, **options):
            stream.write(line(record))
            count += 1
        return count

    return write_lines


def _jsonl(convert, options=None, **others):
    return Format(_lines(convert), ".jsonl", "application/jsonl", options or {}, **others)


_PAIRS = {"strategy": STRATEGIES}
FORMATS: dict[str, Format] = {
    "canonical": _jsonl(canonical.unchanged),
    "trl": _jsonl(
        trl.to_explicit, {**_PAIRS, "ties": TIES, "style": trl.STYLES}, why_not=trl.why_not_explicit, weighs=True
    ),
    "trl_implicit": _jsonl(trl.to_implicit, {**_PAIRS, "ties": TIES}, why_not=why_no_pair, weighs=True),
    "hh": _jsonl(hh.to_hh, _PAIRS, why_not=hh.why_not_hh),
    "openai": _jsonl(openai.to_openai, {**_PAIRS, "batch": ()}, why_not=openai.why_not_openai),
    "kto": _jsonl(unpaired.to_kto, {"negatives": unpaired.NEGATIVES}, why_not=unpaired.why_not_kto),
    "sft": _jsonl(unpaired.to_sft, {"style": unpaired.SFT_STYLES}, reads="demonstrations"),
    "csv": Format(spreadsheet.write_csv, ".csv", "text/csv; charset=utf-8"),
    "parquet": Format(parquet_file.write_parquet, ".parquet", "application/vnd.apache.parquet"),
}


def write(name: str, rows: Iterable[dict], to: str | Path | BinaryIO, /, **options: str) -> Written:
    """Writes rows in a format, to a new file or a binary stream. Rows that it cannot hold are left out and counted.

    Raises Refusal for an unknown format or option, and where not one row can be held; Conflict for a file that exists.
    """
    known = require_format(name, FORMATS, "written")
    check_options(name, known.options, options)
    if not isinstance(to, str | os.PathLike):
        return _write(name, rows, to, options)
    path = Path(to)
    require_new(path)
    with writing(path, "another file"):
        return _write_file(path, lambda stream: _write(name, rows, stream, options))


def _write(name, rows, stream, options):
    known = FORMATS[name]
    if known.weighs and iter(rows) is rows:  # rows that pass by once only
        rows = list(rows)
    held = Held(rows, lambda row: known.why_not(row, **options))
    records = known.write(held, stream, **({"votes": Votes(rows)} if known.weighs else {}), **options)
    if records == 0 and held.left_out:
        raise Refusal(f"format '{name}' can hold none of these {known.reads}: {reasons(held.left_out)}")
    return Written(records, dict(held.left_out))


def left_out_of_formats(row: dict) -> Iterator[tuple[str, str]]:
    """(format, why) of the formats that cannot hold a ranking, with their options as they are by default."""
    for name, known in FORMATS.items():
        if known.reads == "rankings" and (why := known.why_not(row)):
            yield name, why


def reasons(left_out: dict[str, int]) -> str:
    """E.g. "2 with a system turn, 1 with all answers tied"."""
    return ", ".join(f"{count:,} {why}" for why, count in left_out.items())


def require_new(path: Path) -> None:
    if path.exists():
        raise Conflict(f"{path}: is there already; choose another name or move it away")


def _write_file(path, write_to):
    """The file appears under its name when all of it is on the disk."""
    with private.workspace(path.parent) as unfinished:
        temporary = unfinished / path.name
        with private.new_file(temporary) as stream:
            written = write_to(stream)
        os.replace(temporary, path)
    sync(path.parent)
    return written

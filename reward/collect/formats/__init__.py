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
| public sets  | only | see reading.py and docs/rankings.md          | all else                                        |

(1) A ranking comes back whole where it has an item_id and strategy is all, adjacent or best_vs_rest; else as pairs.
(2) A ranking that ties all its answers goes out with ties=soft only. style=text loses outer white space of turns.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from reward.collect import private
from reward.collect.formats import canonical, hh, openai, spreadsheet, trl, unpaired
from reward.collect.formats import parquet as parquet_file
from reward.collect.formats.choosing import Allowed, check_options, require_format
from reward.collect.formats.pairs import STRATEGIES, TIES
from reward.collect.formats.reading import READERS, read
from reward.collect.refusals import Conflict
from rlhf.files import sync, writing

__all__ = ["FORMATS", "READERS", "check_options", "line", "read", "require_format", "require_new", "write"]


@dataclass(frozen=True)
class Format:
    """A way to write rows. options: name -> allowed values, the default first; () for any text."""

    write: Callable[..., int]  # (rows, stream, **options) -> number of records
    suffix: str
    media_type: str
    options: Allowed = field(default_factory=dict)
    reads: str = "rankings"  # which file of a version it is made from: rankings or demonstrations


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
    with private.workspace(path.parent) as unfinished:
        temporary = unfinished / path.name
        with private.new_file(temporary) as stream:
            count = write_to(stream)
        os.replace(temporary, path)
    sync(path.parent)
    return count

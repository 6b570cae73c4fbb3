"""Rankings in from other tools and public sets: what is read under which name (docs/rankings.md shows each)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reward.collect.formats import (
    answer_lists,
    answer_rows,
    argilla,
    canonical,
    columns,
    hh,
    label_studio,
    oasst,
    openai,
    trl,
    two_answers,
)
from reward.collect.formats.choosing import Allowed, check_options, require_format, require_options
from reward.collect.formats.pairs import rejoined
from reward.collect.formats.rows import array_records, decoded, line_records
from rlhf.errors import UserError

Tell = Callable[[UserError], None]


def _each(rows: Iterable[dict], tell: Tell) -> Iterable[dict]:
    return rows


def _rejoined(rows: Iterable[dict], tell: Tell) -> Iterable[dict]:
    return rejoined(rows)


@dataclass(frozen=True)
class Reader:
    parse: Callable  # one record, options -> canonical rows, or parts of rows for `join`; raises RecordError
    records: Callable = line_records  # path -> raw records
    join: Callable[[Iterable[dict], Tell], Iterable[dict]] = _each  # what was parsed of a whole file -> rows
    options: Allowed = field(default_factory=dict)  # those with a choice must be given
    check: Callable[[dict], None] = lambda options: None
    kind: str = "theirs"  # "rankings" where the columns are ours, under the names and in the forms that stages read


READERS: dict[str, Reader] = {
    "canonical": Reader(canonical.parse, kind="rankings"),
    "parquet": Reader(canonical.parse, kind="rankings"),
    "trl": Reader(trl.parse, join=_rejoined, kind="rankings"),
    "trl_implicit": Reader(trl.parse, join=_rejoined, kind="rankings"),
    "hh": Reader(hh.parse),
    "openai": Reader(openai.parse, join=_rejoined),
    "argilla": Reader(argilla.parse, array_records),
    "label_studio": Reader(label_studio.parse, array_records),
    "columns": Reader(columns.parse, options=dict.fromkeys(columns.OPTIONS, ()), check=columns.check, kind="rankings"),
    "rows": Reader(answer_rows.parse_rows, join=answer_rows.grouped, kind="rankings"),
    "ultrafeedback": Reader(answer_lists.parse_ultrafeedback, options={"score": answer_lists.ULTRAFEEDBACK_SCORES}),
    "nectar": Reader(answer_lists.parse_nectar),
    "stack_answers": Reader(answer_lists.parse_stack_answers),
    "stack_paired": Reader(two_answers.STACK_PAIRED.parse),
    "shp": Reader(two_answers.SHP.parse),
    "webgpt": Reader(two_answers.WEBGPT.parse),
    "pku": Reader(two_answers.parse_pku, options={"by": ("better", "safer")}),
    "arena": Reader(two_answers.ARENA_BATTLE.parse),
    "helpsteer": Reader(
        answer_rows.parse_helpsteer, join=answer_rows.grouped, options={"attribute": answer_rows.ATTRIBUTES}
    ),
    "helpsteer_pairs": Reader(two_answers.HELPSTEER_PAIRS.parse),
    "helpsteer3": Reader(two_answers.HELPSTEER3.parse),
    "alpaca_farm": Reader(two_answers.ALPACA_FARM.parse),
    "oasst": Reader(oasst.parse, join=oasst.rankings),
}


def read(
    name: str,
    path: str | Path,
    problems: list[UserError] | None = None,
    notes: Counter | None = None,
    fields: dict[str, str | None] | None = None,
    **options: str,
) -> Iterator[dict]:
    """The canonical rows of a file in a format.

    A bad record raises UserError that names its place; with a list for `problems` it is put there and left out.
    notes: counts what is worth telling of how records were read. fields: our name -> theirs, None for one to leave out.
    """
    reader = require_format(name, READERS, "read")
    check_options(name, reader.options, options)
    require_options(name, reader.options, options)
    reader.check(options)
    return _rows(reader, path, problems, notes, fields, options)


def _rows(reader, path, problems, notes, fields, options):
    def tell(error):
        if problems is None:
            raise error
        problems.append(error)

    told = []
    yield from reader.join(_parsed(reader, path, tell, told, fields, options), tell)
    if notes is not None:
        notes.update(told)


def _parsed(reader, path, tell, told, fields, options):
    for where, raw in reader.records(path):
        num_told = len(told)
        try:
            rows = reader.parse(decoded(raw, where, reader.kind, fields, told), **options)
        except UserError as error:
            del told[num_told:]
            tell(error)
        else:
            yield from rows

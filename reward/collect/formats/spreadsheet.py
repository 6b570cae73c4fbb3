"""CSV for spreadsheets: a line per answer. Written only: a spreadsheet is for looking, not a source.

A cell that begins with = + - @ (or the wide forms of these), tab or CR would be run as a formula,
https://owasp.org/www-community/attacks/CSV_Injection. Where a program takes line ends, or ; or tabs, for the ends of
cells, so would the rest of a text after one. Each such place gets ' in front; so does one with a ' of its own there,
which makes what was ranked what is left when one ' is taken off each: `unprotected` does.
"""

import csv
import io
import re
from collections.abc import Iterable
from typing import BinaryIO

from reward.collect.formats.canonical import item_id, policies_of

COLUMNS = ("item_id", "prompt_id", "group", "annotator", "prompt", "response", "rank", "unacceptable", "shown_at")
COLUMNS += ("policy", "comment", "seconds", "guidelines_version")
# Where some program may begin a cell, and a formula after it: at the start, and after a line end, tab or semicolon.
_CELL_START = r"(?:^|(?<=[\n\r\v\f\x85\u2028\u2029\t;]))"
_FORMULA = r"[=+\-@\uff1d\uff0b\uff0d\uff20\t\r]"
_TO_PROTECT = re.compile(f"{_CELL_START}(?='*{_FORMULA})")
_PROTECTED = re.compile(f"{_CELL_START}'(?='*{_FORMULA})")


def safe(value) -> str:
    return _TO_PROTECT.sub("'", "" if value is None else str(value))


def unprotected(cell: str) -> str:
    """What `safe` made the cell of."""
    return _PROTECTED.sub("", cell)


def write_csv(rows: Iterable[dict], stream: BinaryIO) -> int:
    """Writes the rows with a byte order mark, without which spreadsheets take UTF-8 for something else."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        for line in answer_lines(row):
            writer.writerow([safe(line[column]) for column in COLUMNS])
        count += 1
    text.flush()
    text.detach()  # else closing the wrapper closes the caller's stream
    return count


def answer_lines(row: dict) -> list[dict]:
    """The cells of each answer of a row, by column."""
    meta = row.get("meta", {})
    order, unacceptable = meta.get("display_order"), meta.get("unacceptable")
    shared = {name: row.get(name) for name in ("prompt_id", "group", "annotator")}
    shared |= {name: meta.get(name) for name in ("comment", "seconds", "guidelines_version")}
    shared |= {"item_id": item_id(row), "prompt": prompt_cell(row["prompt"])}
    return [
        {
            **shared,
            "response": response,
            "rank": row["ranks"][i],
            "unacceptable": None if unacceptable is None else "yes" if i in unacceptable else "no",
            "shown_at": order.index(i) + 1 if order else None,
            "policy": ", ".join(map(str, policies_of(row, i))),
        }
        for i, response in enumerate(row["responses"])
    ]


def prompt_cell(messages: list[dict]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)

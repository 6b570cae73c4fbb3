"""CSV for spreadsheets: a line per answer. Written only: a spreadsheet is for looking, not a source.

A cell that begins with = + - @ tab or CR would be run as a formula, https://owasp.org/www-community/attacks/CSV_Injection;
such a cell gets ' in front, which is why texts here may differ from what was ranked.
"""

import csv
import io
from collections.abc import Iterable
from typing import BinaryIO

from reward.collect.formats.canonical import item_id, policies_of

COLUMNS = ("item_id", "prompt_id", "group", "annotator", "prompt", "response", "rank", "unacceptable", "shown_at")
COLUMNS += ("policy", "comment", "seconds", "guidelines_version")
RUN_AS_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe(value) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(RUN_AS_FORMULA) else text


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

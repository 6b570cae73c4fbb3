"""What `import` and `sample` bring in: answers into the queue, or rankings made elsewhere into a file for training."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reward.collect import formats
from reward.collect.home import ACTOR
from reward.collect.intake.answers import AnswerFile
from reward.collect.progress import Problems, passing
from reward.collect.ranking.items import Added, NewItem, add_in_chunks, check_items
from reward.collect.store.database import Database
from reward.collect.texts import plural
from reward.ranks import has_ties
from rlhf.errors import UserError
from rlhf.hashing import json_sha256


def import_answers(database: Database, file: AnswerFile, on_error: str, dry_run: bool) -> None:
    """Checks the whole file, and only then puts its items into the queue. dry_run: only says what would come of it."""
    problems = Problems()
    would = check_items(database, passing(file.items(problems.append), "checked {} items"))
    leave_out(file.path, problems, would.items + would.already_there, on_error)
    if dry_run:
        print("\n".join(added_lines(would, "would queue")))
    else:
        queue(database, lambda: file.items(lambda told_before: None), would)


def queue(database: Database, items: Callable[[], Iterable[NewItem]], would: Added) -> None:
    """Puts items that were checked into the queue, a chunk at a time, and says what came of it."""
    added, told = Added(), "queued {} items"
    try:
        for part in add_in_chunks(database, passing(items(), told, would.items + would.already_there), ACTOR):
            added.add(part)
    except BaseException:
        if added.items:
            print(f"{added.items:,} of {would.items:,} items are in; the same again adds the rest", file=sys.stderr)
        raise
    print("\n".join(added_lines(added, "queued")))


def added_lines(added: Added, verb: str) -> list[str]:
    """What came of new items, for the terminal."""
    lines = [f"{verb} {plural(added.items, 'item')}, with {plural(added.prompts, 'new prompt')}"]
    lines += [f"{plural(added.already_there, 'item')} there already"] if added.already_there else []
    same = f"{plural(added.merged, 'answer')} the same as another of their prompt, one answer now"
    lines += [same] if added.merged else []
    ties = f"{plural(added.identical, 'prompt')} on which all policies said the same: ties, not shown"
    lines += [ties] if added.identical else []
    return lines + [f"  {note}" for note in added.notes]


def leave_out(source: str | Path, problems: Problems, num_good: int, on_error: str) -> None:
    """Says what is left out with on_error=skip. Otherwise raises UserError: all of a file comes in, or nothing."""
    if not problems:
        return
    told, bad = "\n".join(problems.lines()), plural(len(problems), "bad record")
    if on_error == "error" or not num_good:
        remedy = "mend the file" if not num_good else "mend the file, or leave them out with --on-error skip"
        raise UserError(f"{source}: {bad}, {num_good} good; nothing is stored, {remedy}\n{told}")
    print(f"{source}: left out {bad}\n{told}")


def convert(format: str, source: str, target: Path, on_error: str, fields: dict, options: dict[str, str]) -> None:
    """Writes rankings that were made elsewhere as a file for data.rankings."""
    formats.require_new(target)
    problems, notes, counted = Problems(), Counter(), Counted()
    rows = passing(formats.read(format, source, problems, notes, fields, **options), "read {} rankings")

    def good_rows() -> Iterator[dict]:
        """All of them, or an error in place of the end: then there is no file."""
        yield from map(counted.row, rows)
        if not counted.rankings and not problems:
            raise UserError(f"{source}: has no rankings in it that format '{format}' finds; nothing is written")
        leave_out(source, problems, counted.rankings, on_error)

    formats.write("canonical", good_rows(), target)
    print("\n".join([f"{target}: {counted}, for data.rankings", *(f"  {n}: {notes[n]}" for n in notes)]))


@dataclass
class Counted:
    """How many rankings of how many prompts have passed, and how many of them have ties."""

    rankings: int = 0
    ties: int = 0
    prompts: set[str] = field(default_factory=set)  # their digests

    def row(self, row: dict) -> dict:
        self.rankings += 1
        self.ties += has_ties(row["ranks"])
        self.prompts.add(json_sha256(row["prompt"]))
        return row

    def __str__(self) -> str:
        return f"{plural(self.rankings, 'ranking')} of {plural(len(self.prompts), 'prompt')}, {self.ties} with ties"

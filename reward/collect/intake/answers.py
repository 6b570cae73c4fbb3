"""Answers made elsewhere, for the import command: a JSONL file whose lines become items of the queue.

    {"prompt": "..." | "messages": [...], "responses": ["..." | {"text": "...", "source": {...} | "name"}, ...],
     "ranks": [...] (gold items: the right order), "prompt_id", "group", "meta"}

Other fields are kept in `meta`. The whole file is checked before anything of it comes in, and all that is
wrong with it is told at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from reward.collect.formats.rows import decoded
from reward.collect.ranking.items import NewItem, NewResponse
from reward.collect.store.settings import MAX_ANSWERS, MIN_ANSWERS
from reward.rankings import parse_ranking
from rlhf.data.dialogues import parse_prompt_messages
from rlhf.data.records import Row, kind_of
from rlhf.data.sources import open_source
from rlhf.errors import UserError

FIELDS = ("prompt", "messages", "responses", "ranks", "prompt_id", "group", "meta")


class AnswerFile:
    """A file of answers, which is read once to check it and once more to add what is in it.

    gold: `ranks` say what is right, and make gold items. fields: our names -> theirs (see rows.decoded).
    """

    def __init__(self, path: str | Path, gold: bool = False, fields: dict[str, str | None] | None = None):
        self.path, self._gold, self._fields = path, gold, fields
        self._sha256 = None

    def items(self, tell: Callable[[UserError], None]) -> Iterator[NewItem]:
        """The items of the good lines; `tell` hears what is wrong with each bad one.

        Raises UserError where the file cannot be read at all, is empty, or is another one than the first time.
        """
        raw_rows, sha256 = open_source(str(self.path), "import")
        if self._sha256 not in (None, sha256):
            raise UserError(f"{self.path}: has changed since it was checked; run the command again")
        self._sha256, num_lines = sha256, 0
        for where, raw in raw_rows:
            num_lines += 1
            try:
                yield parse_answers(decoded(raw, where, fields=self._fields), self._gold)
            except UserError as error:
                tell(error)
        if num_lines == 0:
            raise UserError(f"{self.path}: the file is empty; need at least one line with a prompt and its answers")


def parse_answers(row: Row, gold: bool = False) -> NewItem:
    """The item of a row. An answer that is there twice stays: `add_items` makes one of the two, and tells."""
    messages = parse_prompt_messages(row)
    responses = list(_responses(row))
    _check_count(row, [one.text for one in responses])
    if not gold:
        _refuse_ranks(row)
    return NewItem(
        messages=list(messages),
        responses=responses,
        where=row.where,
        prompt_id=row.name("prompt_id"),
        group=row.name("group"),
        meta=_meta(row),
        gold_ranks=_ranks(row, messages, responses) if gold else None,
    )


def _responses(row) -> Iterator[NewResponse]:
    values = row.values.get("responses")
    if values is None:
        raise row.missing("responses")
    if not isinstance(values, list):
        raise row.error(f"field 'responses' must be a list, not {kind_of(values)}")
    for i, value in enumerate(values):
        entry = value if isinstance(value, dict) else {"text": value}
        if not set(entry) <= {"text", "source"}:
            rule = "an answer is a string or {text, source}"
            raise row.error(f"field 'responses[{i}]' has {', '.join(map(repr, entry))}; {rule}", rule)
        yield NewResponse(_text(row, entry.get("text"), i), _source(row, entry.get("source"), i))


def _text(row, text, i):
    if not isinstance(text, str):
        rule = "an answer must be a string or {text, source}"
        raise row.error(f"field 'responses[{i}]' is {kind_of(text)}; {rule}", rule)
    if not text.strip():
        raise row.error(f"field 'responses[{i}]' is empty; leave the answer out", "an answer is empty")
    return text


def _source(row, source, i):
    if source is None:
        return {"file": row.where}
    if isinstance(source, str) and source.strip():
        return {"policy": source}
    if isinstance(source, dict):
        return source
    rule = "a source is a name or an object"
    raise row.error(f"field 'responses[{i}].source' is {source!r:.40}; {rule}", rule)


def _check_count(row, texts):
    given, distinct = len(texts), len(set(texts))
    if not MIN_ANSWERS <= distinct <= MAX_ANSWERS:
        rule = f"people rank {MIN_ANSWERS} to {MAX_ANSWERS} different answers"
        found = f"{given} answers" if given == distinct else f"{distinct} different among {given} answers"
        raise row.error(f"field 'responses' has {found}; {rule}", rule)


def _refuse_ranks(row):
    if row.has("ranks"):
        raise row.error(
            "field 'ranks' is for gold items (--gold). Rankings that people made elsewhere are no answers to rank: "
            "train on them (data.rankings), or turn them into such a file with --rankings"
        )


def _ranks(row, messages, responses) -> list[int]:
    if not row.has("ranks"):
        raise row.missing("ranks")
    values = {"messages": list(messages), "responses": [one.text for one in responses], "ranks": row.values["ranks"]}
    ranks = parse_ranking(replace(row, values=values)).ranks
    if None in ranks:
        raise row.error("field 'ranks' leaves an answer out; a gold item ranks all of its answers")
    said = {}
    for response, rank in zip(responses, ranks, strict=True):
        if said.setdefault(response.text, rank) != rank:
            raise row.error(f"field 'ranks' puts the same answer at {said[response.text]} and at {rank}")
    if len(set(ranks)) == 1:
        raise row.error("field 'ranks' ties all answers, which nobody can get wrong; rank one above another")
    return list(ranks)


def _meta(row):
    meta = row.values.get("meta") or {}
    if not isinstance(meta, dict):
        raise row.error(f"field 'meta' must be an object, not {kind_of(meta)}")
    return {name: value for name, value in row.values.items() if name not in FIELDS} | meta

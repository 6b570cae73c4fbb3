"""Dialogues as Anthropic's HH-RLHF has them: {chosen, rejected}, each a transcript of Human and Assistant.

https://github.com/anthropics/hh-rlhf. A dialogue that the format would tear apart or cannot hold is refused.
"""

from collections.abc import Iterable, Iterator

from reward.collect.formats.canonical import named, row_of
from reward.collect.formats.pairs import pairs_of
from reward.collect.formats.values import ranking_of
from reward.collect.refusals import Refusal
from rlhf.dialogues import HH_ROLES, HH_TURN, is_hh
from rlhf.records import Row

SPEAKERS = {role: who for who, role in HH_ROLES.items()}


def to_hh(rows: Iterable[dict], strategy="all") -> Iterator[dict]:
    for pair in pairs_of(rows, strategy):
        start = transcript(pair.row) + "\n\nAssistant:"
        yield {side: start + answer_turn(pair.row, pair.text(side)) for side in ("chosen", "rejected")}


def transcript(row: dict) -> str:
    """A row's prompt as "\\n\\nHuman: ...\\n\\nAssistant: ...". Raises Refusal for what that cannot hold."""
    if row["prompt"][0]["role"] == "system":
        raise Refusal(f"{named(row)}: has a system turn, which this format cannot hold; export it as trl or canonical")
    return "".join(f"\n\n{SPEAKERS[turn['role']]}:{answer_turn(row, turn['content'])}" for turn in row["prompt"])


def answer_turn(row: dict, text: str) -> str:
    """What follows "Assistant:". Raises Refusal where the text would end the turn."""
    if found := HH_TURN.search(text):
        raise Refusal(
            f"{named(row)}: a turn contains {found.group()!r}, which divides turns in this format; "
            "export it as trl or canonical"
        )
    return f" {text}"


def prompt_text(row: dict) -> str:
    """The text of a prompt of one turn as it is, and a transcript of any other. rlhf.dialogues.parse_hh reads both."""
    first = row["prompt"][0]
    is_one_turn = len(row["prompt"]) == 1 and first["role"] == "user"
    return first["content"] if is_one_turn and not is_hh(first["content"]) else transcript(row)


def parse(row: Row) -> list[dict]:
    for name in ("chosen", "rejected"):
        if not is_hh(row.text(name)):
            raise row.error(f"field '{name}' must begin with '\\n\\nHuman:'", "not a Human/Assistant transcript")
    dialogues = {name: row.values[name] for name in ("chosen", "rejected")}
    return [row_of(ranking_of(row, dialogues), given=())]

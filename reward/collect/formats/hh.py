"""Dialogues as Anthropic's HH-RLHF has them: {chosen, rejected}, each a transcript of Human and Assistant.

https://github.com/anthropics/hh-rlhf. A dialogue that the format would tear apart or cannot hold is left out.
"""

from collections.abc import Iterable, Iterator

from reward.collect.formats.canonical import row_of
from reward.collect.formats.pairs import pairs_of, why_no_pair
from reward.collect.formats.values import ranking_of
from rlhf.data.dialogues import HH_ROLES, is_hh, parse_hh
from rlhf.data.records import Row

SPEAKERS = {role: who for who, role in HH_ROLES.items()}
SYSTEM_TURN, DIVIDED = "with a system turn", "with a text that a transcript would divide"


def to_hh(rows: Iterable[dict], strategy="all") -> Iterator[dict]:
    for pair in pairs_of(rows, strategy):
        start = transcript(pair.row["prompt"]) + "\n\nAssistant:"
        yield {side: f"{start} {pair.text(side)}" for side in ("chosen", "rejected")}


def why_not_hh(row: dict, strategy="all") -> str | None:
    return why_no_pair(row, strategy) or why_no_transcript(row)


def transcript(messages: list[dict]) -> str:
    """A dialogue without a system turn as "\n\nHuman: ...\n\nAssistant: ..."."""
    return "".join(f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in messages)


def why_no_transcript(row: dict) -> str | None:
    """Why a row's prompt with a ranked answer is no transcript that reads the same again."""
    ranked = zip(row["responses"], row["ranks"], strict=True)
    answers = [{"role": "assistant", "content": text} for text, rank in ranked if rank is not None]
    question = {"role": "user", "content": "?"}
    return why_unlike(row["prompt"]) or next(filter(None, (why_unlike([question, one]) for one in answers)), None)


def why_unlike(messages: list[dict]) -> str | None:
    """Why a dialogue comes back from its transcript as another, but for outer white space; None where it does not."""
    if messages[0]["role"] == "system":
        return SYSTEM_TURN
    trimmed = [{**message, "content": message["content"].strip()} for message in messages]
    return None if parse_hh(transcript(messages)) == trimmed else DIVIDED


def prompt_text(messages: list[dict]) -> str:
    """A dialogue of one turn as it is, and a transcript of any other. rlhf.data.dialogues.parse_hh reads both."""
    is_one_turn = len(messages) == 1 and messages[0]["role"] == "user"
    return messages[0]["content"] if is_one_turn and not is_hh(messages[0]["content"]) else transcript(messages)


def why_no_prompt_text(messages: list[dict]) -> str | None:
    back = None if messages[0]["role"] == "system" else parse_hh(prompt_text(messages))
    return None if back == messages else why_unlike(messages)


def parse(row: Row) -> list[dict]:
    for name in ("chosen", "rejected"):
        if not is_hh(row.text(name)):
            raise row.error(f"field '{name}' must begin with '\\n\\nHuman:'", "not a Human/Assistant transcript")
    dialogues = {name: row.values[name] for name in ("chosen", "rejected")}
    return [row_of(ranking_of(row, dialogues), given=())]

"""Dialogues: tuples of messages {"role": "system" | "user" | "assistant", "content": str}, checked and hashed.

A string prompt is one user message, or a whole dialogue where it is a Human/Assistant transcript.
"""

import json
from collections.abc import Iterable

from rlhf.data.messages import is_empty_system, read_message, role_of
from rlhf.data.records import Row, kind_of, shown
from rlhf.data.row import is_filled
from rlhf.data.transcripts import HH_ROLES, HH_TURN, is_hh, parse_hh, unread_mark
from rlhf.hashing import text_sha256

# Of the file beside this one; whoever reads dialogues finds them here.
__all__ = ["HH_ROLES", "HH_TURN", "is_hh", "parse_hh"]

DIFFER = "fields 'chosen' and 'rejected' differ before their last turn; they must answer the same prompt"


def prompt_key(messages: Iterable[dict]) -> str:
    """Hex sha256 of a dialogue, the same whatever its upper and lower case and its white space."""
    return text_sha256(json.dumps([[m["role"], " ".join(m["content"].casefold().split())] for m in messages]))


# A record's dialogue


def parse_prompt_messages(row: Row) -> tuple[dict, ...]:
    """The dialogue to be answered, from `messages` or else `prompt`."""
    messages = parse_dialogue(row)
    if messages[-1]["role"] != "user":
        name = "messages" if row.has("messages") else "prompt"
        raise row.error(f"field '{name}' must end with a user turn, not with an answer")
    return messages


def parse_dialogue(row: Row) -> tuple[dict, ...]:
    """The record's `messages`, or else `history` and `prompt` (a string, a transcript, or messages), after `system`."""
    if row.has("messages"):
        messages = _messages(row)
        _note_beside(row)
        return with_system(row, messages)
    turns, history = _prompt_turns(row), _history(row)
    return with_system(row, check_dialogue([*history, *turns], row, "history + prompt" if history else "prompt"))


def _messages(row):
    value = row.values["messages"]
    if not isinstance(value, list):
        raise row.error(f"field 'messages' must be a list of {{role, content}}, not {kind_of(value)}")
    return check_dialogue(value, row, "messages")


def _note_beside(row):
    """Says what is not used beside messages. A prompt that is one of their turns says nothing of its own."""
    prompt, messages = row.values.get("prompt"), row.values["messages"]
    said = [message.get("content", message.get("value")) for message in messages if isinstance(message, dict)]
    is_start = isinstance(prompt, list) and prompt == messages[: len(prompt)]
    if is_filled(prompt) and prompt not in said and not is_start:
        row.note("field 'prompt' beside 'messages' not used")
    if is_filled(row.values.get("history")):
        row.note("field 'history' beside 'messages' not used")


def _prompt_turns(row):
    value = row.values.get("prompt")
    if isinstance(value, list):
        return value
    return text_turns(row, "prompt")


def text_turns(row: Row, name: str) -> list[dict]:
    """The turns of a text: those of a transcript, otherwise one user turn. Other forms of transcript are refused."""
    text = row.text(name)
    if not is_hh(text) and (mark := unread_mark(text)):
        rule = f"field '{name}' is a transcript with turn marks that are not read"
        raise row.error(
            f"{rule} ({shown([mark])}); give messages, or turns that begin with '\\n\\nHuman:' and "
            "'\\n\\nAssistant:'. A text that only looks so can be given as one message",
            rule,
        )
    return parse_hh(text)


def _history(row):
    """The turns before the prompt: of [[question, answer], ...] or of messages."""
    value = row.values.get("history")
    if not is_filled(value):
        return []
    pairs = value if isinstance(value, list) else [value]
    if all(isinstance(turn, dict) for turn in pairs):
        return pairs
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        rule = "field 'history' must be a list of [question, answer]"
        raise row.error(f"{rule}, not {kind_of(value)}. {row.if_foreign('history')}", rule)
    who = ("user", "assistant")
    return [{"role": role, "content": said} for pair in pairs for role, said in zip(who, pair, strict=True)]


def pair_prompt(row: Row) -> tuple[dict, ...]:
    """What two whole dialogues, `chosen` and `rejected`, have in common: all but their answers."""
    chosen, rejected = (_answered(row, name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise row.error(DIFFER)
    return with_system(row, chosen[:-1])


def _answered(row, name):
    value = row.values[name]
    turns = value if isinstance(value, list) else text_turns(row, name)
    is_text = isinstance(value, str) and not is_hh(value)
    if is_text or (turns and role_of(turns[0]) == "assistant"):
        raise row.missing("prompt")
    dialogue = check_dialogue(turns, row, name)
    if dialogue[-1]["role"] != "assistant":
        raise row.error(f"field '{name}' must end with an answer of the assistant")
    return dialogue


def with_system(row, dialogue):
    """The dialogue after the system turn that field `system` holds."""
    system = row.values.get("system")
    if system is None or (isinstance(system, str) and not system.strip()):
        return dialogue
    turn = {"role": "system", "content": row.text("system")}
    if dialogue[0]["role"] != "system":
        row.note("field 'system' read as the system turn")
        return (turn, *dialogue)
    if dialogue[0] != turn:
        raise row.error(f"field 'system' differs from the dialogue's system turn; {row.mapping('system', None)}")
    return dialogue


def check_dialogue(messages: list, row: Row, name: str) -> tuple[dict, ...]:
    """The messages with nothing but role and content: a system turn or none, then user and assistant in turn.

    An empty system turn is none.
    """
    if messages and is_empty_system(messages[0]):
        row.note("empty system turns left out")
        messages = messages[1:]
    dialogue = tuple(read_message(message, row, f"{name}[{i}]") for i, message in enumerate(messages))
    num_system = 1 if dialogue and dialogue[0]["role"] == "system" else 0
    if len(dialogue) == num_system:
        raise row.error(f"field '{name}' has no user turn")
    for i, message in enumerate(dialogue[num_system:]):
        expected = ("user", "assistant")[i % 2]
        if message["role"] != expected:
            place, role = f"field '{name}[{num_system + i}].role'", shown([message["role"]])
            rule = "user and assistant must take turns, after one system turn or none"
            raise row.error(f"{place} is '{role}', must be '{expected}': {rule}", rule)
    return dialogue

"""Dialogues: tuples of messages {"role": "system" | "user" | "assistant", "content": str}, checked and hashed.

A string prompt is one user message, or a whole dialogue where it is a Human/Assistant transcript.
"""

import hashlib
import json
import re
from collections.abc import Iterable

from rlhf.records import Row, kind_of, shown

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def prompt_key(messages: Iterable[dict]) -> str:
    """Hex sha256 of a dialogue, the same whatever its upper and lower case and its white space."""
    return sha256(json.dumps([[m["role"], " ".join(m["content"].casefold().split())] for m in messages]))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def parse_prompt_messages(row: Row) -> tuple[dict, ...]:
    """The dialogue to be answered, from `messages` or else `prompt`."""
    messages = parse_dialogue(row)
    if messages[-1]["role"] != "user":
        name = "messages" if row.has("messages") else "prompt"
        raise row.error(f"field '{name}' must end with a user turn, not with an answer")
    return messages


def parse_dialogue(row: Row) -> tuple[dict, ...]:
    """The record's `messages`, or else its `prompt`: a string, a Human/Assistant transcript, or messages."""
    name = "messages" if row.has("messages") else "prompt"
    value = row.values.get(name)
    if isinstance(value, list):
        return check_dialogue(value, row, name)
    if name == "messages":
        raise row.error(f"field 'messages' must be a list of {{role, content}}, not {kind_of(value)}")
    return check_dialogue(parse_hh(row.text("prompt")), row, name)


def parse_hh(text: str) -> list[dict]:
    """The messages of a "\\n\\nHuman: ...\\n\\nAssistant: ..." transcript; of any other text, one user message.

    An empty last Assistant turn, where the answer is to come, is left out. The format is Anthropic's HH-RLHF,
    https://github.com/anthropics/hh-rlhf.
    """
    if not is_hh(text):
        return [{"role": "user", "content": text}]
    _, *turns = HH_TURN.split("\n\n" + text.lstrip("\n"))
    messages = [
        {"role": HH_ROLES[who], "content": said.strip()} for who, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def is_hh(text: str) -> bool:
    return text.startswith("\n\nHuman:") or (text.startswith("Human:") and "\n\nAssistant:" in text)


def check_dialogue(messages: list, row: Row, name: str) -> tuple[dict, ...]:
    """The messages with nothing but role and content: a system turn or none, then user and assistant in turn."""
    dialogue = tuple(_check_message(message, row, f"{name}[{i}]") for i, message in enumerate(messages))
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


def _check_message(message, row, place):
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise row.error(f"field '{place}' must be {{role, content}}, both strings", "a message must be {role, content}")
    if not content.strip():
        raise row.error(f"field '{place}.content' is empty", "a message is empty")
    return {"role": message["role"], "content": content}

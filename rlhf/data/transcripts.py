"""Dialogues written as one text: Anthropic's Human/Assistant transcripts, which are read, and others, which are not.

https://github.com/anthropics/hh-rlhf
"""

import re

HH_TURN = re.compile(r"(?:\r?\n){2}(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}

# (a mark of who asks, a mark of who answers) of the forms that are met: a text with both is a dialogue.
_AT_THE_START = [
    (r"\s*(\*\*)?(human|user)(\*\*)? ?:", r"^[ \t]*(\*\*)?(assistant|chatbot|bot|gpt|ai)(\*\*)? ?:"),
    (r"\s*(<s>\s*)?\[INST\]", r"\[/INST\]"),
    (r"\s*<\|(system|user|human|prompter)\|>", ""),
    (r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:", ""),
]
_AT_A_LINE = [
    (r"^[ \t]*#{2,} ?(human|user|prompter|instruction)\b", r"#{2,} ?(assistant|response|answer|gpt|bot|ai)\b"),
    (r"^[ \t]*(<\|begin_of_text\|>|<bos>)?(<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>)", ""),
]
_MAY_BEGIN = re.compile(r"\s*[*hu<\[]", re.IGNORECASE)
_AT_THE_START, _AT_A_LINE = (
    [tuple(re.compile(mark, re.IGNORECASE | re.MULTILINE) for mark in both) for both in marks]
    for marks in (_AT_THE_START, _AT_A_LINE)
)


def is_hh(text: str) -> bool:
    begins = text.lstrip("\r\n").startswith("Human:")
    return begins and (HH_TURN.match(text) is not None or any(turn == "Assistant" for turn in HH_TURN.findall(text)))


def parse_hh(text: str) -> list[dict]:
    """The messages of a "\\n\\nHuman: ...\\n\\nAssistant: ..." transcript; of any other text, one user message.

    An empty last Assistant turn, where the answer is to come, is left out.
    """
    if not is_hh(text):
        return [{"role": "user", "content": text}]
    _, *turns = HH_TURN.split("\n\n" + text.lstrip("\r\n"))
    messages = [
        {"role": HH_ROLES[who], "content": said.strip()} for who, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def unread_mark(text: str) -> str | None:
    """The first turn mark of a text that is a dialogue in a form that is not read; None for any other text."""
    found = [(asks.match(text), answers) for asks, answers in _AT_THE_START] if _MAY_BEGIN.match(text) else []
    if "##" in text or "<" in text:  # most texts are spared the slower search
        found += [(asks.search(text), answers) for asks, answers in _AT_A_LINE]
    marks = [asked.group() for asked, answers in found if asked and answers.search(text, asked.end())]
    return marks[0].strip()[:40] if marks else None

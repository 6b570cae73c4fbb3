"""The chat template that stage 1 pins into its artifact, so that every later stage and every server renders alike.

Pinned are: its options, the date it writes, what it writes between prompt and answer, and the token with which it ends
a turn. The comparison is made on the run's own demonstrations. BOS is put in place whenever a tokenizer is loaded.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from rlhf.errors import EncodingError, UserError
from rlhf.text.control_tokens import control_tokens
from rlhf.text.encoding import DOCUMENT_END, first_ids, text_ids
from rlhf.text.rendering import REMEDY, num_common, refuse_second_thoughts, render, without_spaces

ENOUGH = 50  # dialogues that are compared; all others are checked one by one when they are encoded
WORD = "Xylograph"  # an answer that no template touches
QUESTION = {"role": "user", "content": "Hello"}
PROBE = (QUESTION, {"role": "assistant", "content": WORD})


@dataclass(frozen=True)
class Frame:
    """How a template surrounds an answer.

    dropped: what the generation prompt ends with that an answered dialogue has not; written: what that has in its
    place; end: the control token that ends the turn, or "" where there is none.
    """

    dropped: str
    written: str
    end: str


def pin_template(tokenizer, dialogues: Iterable, options: dict, now: datetime) -> None:
    """Fixes tokenizer.chat_template and tokenizer.eos_token. dialogues: messages that end with an answer.

    What is pinned already stays: pinning again changes nothing, unless the dialogues ask for another frame.
    """
    tokenizer.chat_template = with_constants(tokenizer.chat_template, options, now)
    frame = common_frame(tokenizer, dialogues)
    if frame.end and frame.end != tokenizer.eos_token:
        end_turns_with(tokenizer, frame.end)
    if frame.dropped or frame.written:
        tokenizer.chat_template = reframed(tokenizer.chat_template, frame)


def named_template(tokenizer) -> str:
    """The template for plain dialogues, where a tokenizer brings several."""
    templates = tokenizer.chat_template
    if isinstance(templates, str):
        return templates
    if "default" not in templates:
        names = ", ".join(templates)
        raise UserError(f"the tokenizer has chat templates named {names}, and none named default; {REMEDY}")
    return templates["default"]


def with_constants(template: str, options: dict, now: datetime) -> str:
    """The template with its options set, and with today's date where it asks for one. What it sets itself is later."""
    lines = [f"{{%- set {name} = {literal(value)} %}}" for name, value in options.items()]
    if "strftime_now" in template and "macro strftime_now" not in template:
        filters = date_filters(template, now)
        lines.append(f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}")
    return "".join(lines) + template


def literal(value) -> str:
    """A value as Jinja writes it, which takes Python's strings, numbers, lists and True, False and None."""
    return repr(value)


def date_filters(template: str, now: datetime) -> str:
    """Jinja filters that do what strftime would do now, for what is asked of it anywhere in the template."""
    directives = sorted(set(re.findall("%-?[a-zA-Z]", template)))
    return "".join(f" | replace({directive!r}, {now.strftime(directive)!r})" for directive in directives)


def common_frame(tokenizer, dialogues: Iterable) -> Frame:
    """The frame of most dialogues. Raises UserError where the template cannot be used at all."""
    frames = Counter()
    for messages in islice(dialogues, ENOUGH):
        try:
            frames[frame_of(tokenizer, messages)] += 1
        except EncodingError:  # a record that is refused, or left out and counted, when it is encoded
            continue
    if not frames:
        return frame_of(tokenizer, PROBE)
    return frames.most_common(1)[0][0]


def frame_of(tokenizer, messages) -> Frame:
    """How the template surrounds the answer that ends a dialogue."""
    *prompt, answer = messages
    context = render(tokenizer, prompt, is_prompt=True)
    answered = render(tokenizer, messages, is_prompt=False)
    if answered == context:  # it writes no answers, as a template for plain continuation
        return Frame("", "", "")
    closing = closing_of(tokenizer, prompt, answered)
    start = start_of(answered.removesuffix(closing), answer["content"])
    if start is None:
        raise EncodingError(f"the chat template does not write the answer {answer['content'][:40]!r}; {REMEDY}")
    refuse_second_thoughts(answered[:start], answer["content"])
    common = num_common(context, answered[:start])
    dropped, written = context[common:], answered[common:start]
    if not dropped and written.isspace():
        written = ""  # a space is learned with the word that follows it: they are one token
    return Frame(dropped, written, end_of_turn(tokenizer, prompt, closing))


def closing_of(tokenizer, prompt: list, answered: str) -> str:
    """What the template writes after an answer at the end of a dialogue."""
    rendered = render(tokenizer, [*prompt, PROBE[-1]], is_prompt=False)
    if WORD not in rendered:
        raise EncodingError(
            "the chat template does not write messages that are plain text (is it one for images?); " + REMEDY
        )
    return rendered.rpartition(WORD)[-1]


def end_of_turn(tokenizer, prompt: list, closing: str) -> str:
    """The first control token after an answer; where the template writes none, that which begins the next turn."""
    if found := control_tokens(tokenizer).search(closing):
        return found.group()
    try:
        longer = render(tokenizer, [*prompt, PROBE[-1], QUESTION], is_prompt=False)
    except EncodingError:  # a template for one question
        return ""
    found = control_tokens(tokenizer).match(longer.rpartition(WORD)[-1].lstrip())
    return found.group() if found else ""


def start_of(text: str, answer: str) -> int | None:
    """Where the answer begins in a text that ends with it, however the white space in it was changed."""
    place = len(text)
    for letter in reversed(without_spaces(answer)):
        place = len(text[:place].rstrip()) - 1
        if place < 0 or text[place] != letter:
            return None
    return place


def end_turns_with(tokenizer, token: str) -> None:
    """Makes a token the one that ends answers, in every stage and server. The template goes on to write the old one."""
    old = tokenizer.eos_token
    if "eos_token" in tokenizer.chat_template:
        tokenizer.chat_template = f"{{%- set eos_token = {literal(old)} %}}{tokenizer.chat_template}"
    tokenizer.init_kwargs.setdefault(DOCUMENT_END, old)
    tokenizer.eos_token = token


def reframed(template: str, frame: Frame) -> str:
    """The template with another end of its generation prompt."""
    whole = f"{{%- set rendered %}}{template.removesuffix(chr(10))}{{% endset %}}"
    is_other = f"add_generation_prompt and rendered.endswith({literal(frame.dropped)})"
    kept = f"rendered[:rendered | length - {len(frame.dropped)}]"
    return f"{whole}{{{{- {kept} ~ {literal(frame.written)} if {is_other} else rendered }}}}"


def begin_as_tokenizer_does(tokenizer) -> None:
    """Puts before all dialogues what the tokenizer puts before all texts (BOS), unless the template does."""
    wanted = first_ids(tokenizer)
    if text_ids(tokenizer, render(tokenizer, PROBE[:1], is_prompt=True))[: len(wanted)] != wanted:
        text = tokenizer.decode(wanted, clean_up_tokenization_spaces=False)
        tokenizer.chat_template = f"{{{{- {literal(text)} }}}}{tokenizer.chat_template}"

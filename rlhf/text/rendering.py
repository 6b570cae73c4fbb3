"""Dialogues to text in the chat template, and an answer's part of that text.

What the template writes before an answer is the context: the same text in every stage. chat_template.py
tells how stage 1 makes the template's generation prompt that context.
"""

from jinja2 import TemplateError

from rlhf.errors import EncodingError
from rlhf.text.control_tokens import refuse_control_tokens

REMEDY = "see model.chat_template and model.chat_template_kwargs"
# What a template raises on purpose, and what it stumbles over when it was made for other messages.
ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def render(tokenizer, messages, is_prompt: bool) -> str:
    """The dialogue as text. is_prompt: up to where the assistant's next answer begins."""
    for message in messages:
        refuse_control_tokens(tokenizer, message["content"])
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=is_prompt)
    except ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise EncodingError(f"the chat template cannot render the dialogue ({reason}); {REMEDY}") from error


def rendered_answer(context: str, answered: str, answer: str, end: str) -> str:
    """An answer as the template writes it, up to the end of the turn, e.g. trimmed.

    context, answered: the text before the answer, and with it. Raises EncodingError where the one does not continue
    the other, or where the template leaves out a part of the answer.
    """
    if answered == context:
        return answer  # a template for one question: it writes no answers
    if not answered.startswith(context):
        raise EncodingError(
            f"the chat template writes {_where_they_part(answered, context)!r} before this answer, and the prompt "
            f"goes on with {_where_they_part(context, answered)!r}; {REMEDY}",
            "the chat template writes something else before the answer than the prompt ends with",
        )
    refuse_second_thoughts(context, answer)
    written = answered.removeprefix(context)
    body = written.split(end)[0] if end in written else _without_closing(written, answer)
    if not without_spaces(body).startswith(without_spaces(answer)):
        raise EncodingError(
            f"the chat template renders the answer {_short(answer)!r} as {_short(body)!r}, which is not all of it; "
            f"{REMEDY}",
            "the chat template renders only a part of the answer",
        )
    return body


def num_common(text: str, other: str) -> int:
    """The number of letters with which two texts both begin."""
    differ = (i for i, (letter, its) in enumerate(zip(text, other, strict=False)) if letter != its)
    return next(differ, min(len(text), len(other)))


def without_spaces(text: str) -> str:
    return "".join(text.split())


def refuse_second_thoughts(context: str, answer: str) -> None:
    """Raises EncodingError where an answer that begins with its thoughts would stand behind a closed think block."""
    if answer.lstrip().startswith("<think>") and context.rstrip().endswith("</think>"):
        rule = "the answer brings a <think> block, and the chat template writes an empty one before it"
        raise EncodingError(f"{rule}; {REMEDY}, or leave the thoughts out of all answers", rule)


def _without_closing(written: str, answer: str) -> str:
    """The answer in what the template wrote, less the line breaks that it puts after each turn."""
    core = answer.strip()
    if core not in written:
        return written.rstrip()
    end = written.index(core) + len(core)
    own = answer[len(answer.rstrip()) :]
    return written[:end] + (own if written[end:].startswith(own) else "")


def _where_they_part(text: str, other: str) -> str:
    """The piece of a text in which it begins to differ from another."""
    place = num_common(text, other)
    return text[max(0, place - 20) : place + 40]


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:40]} ... {text[-35:]}"

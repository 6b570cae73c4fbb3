"""Dialogues and texts to token ids: the same ids in every stage, which are those that a server makes of them.

The ids before an answer are those of the whole rendered context; the answer's ids are what its text adds to them. So a
tokenizer neither gains nor loses a space where the two meet, and an answer has the same ids when it is learned, scored
and optimised.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from rlhf.config.schema import DataConfig, OnError
from rlhf.errors import EncodingError, UserError
from rlhf.text.control_tokens import control_tokens, refuse_control_tokens
from rlhf.text.rendering import render, rendered_answer

DOCUMENT_END = "document_end"  # in tokenizer_config.json: what ends a plain text, where turns end with another token


@dataclass(frozen=True)
class Context:
    """What is put before the model: the dialogue so far, its text up to where the answer begins, the text's ids."""

    messages: tuple
    text: str
    ids: list[int]


def context_of(tokenizer, messages) -> Context:
    """The context of the answer to these messages: the dialogue in the chat template, up to where the answer begins."""
    text = render(tokenizer, messages, is_prompt=True)
    return Context(tuple(messages), text, text_ids(tokenizer, text))


def encode_answer(tokenizer, context: Context, answer: str) -> list[int]:
    """Token ids of an answer from data, as the chat template writes it, and of the end of its turn."""
    return [*answer_ids(tokenizer, context, answer_text(tokenizer, context, answer)), tokenizer.eos_token_id]


def encode_sample(tokenizer, context: Context, text: str) -> list[int]:
    """Token ids of a sampled answer, and of the end of its turn. A control token in the text is spelled in letters."""
    return [*answer_ids(tokenizer, context, text), tokenizer.eos_token_id]


def answer_text(tokenizer, context: Context, answer: str) -> str:
    """An answer from data as the chat template writes it behind its context."""
    answered = render(tokenizer, [*context.messages, {"role": "assistant", "content": answer}], is_prompt=False)
    return rendered_answer(context.text, answered, answer, tokenizer.eos_token)


def answer_ids(tokenizer, context: Context, text: str) -> list[int]:
    """What a text adds to its context's ids."""
    if control_tokens(tokenizer).search(text):
        return _ids_apart(tokenizer, text, split_special_tokens=True)
    ids, known = text_ids(tokenizer, context.text + text), len(context.ids)
    if ids[:known] == context.ids:
        return ids[known:]
    return _ids_apart(tokenizer, text)  # its first letters would melt into the context's last token


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of plain text, begun as the tokenizer begins a text (with BOS, where it does), ended by EOS."""
    refuse_control_tokens(tokenizer, text)
    return [*first_ids(tokenizer), *text_ids(tokenizer, text), document_end(tokenizer)]


def document_end(tokenizer) -> int:
    """The id of what ends a plain text: the tokenizer's first EOS, where turns end with another token."""
    return tokenizer.convert_tokens_to_ids(tokenizer.init_kwargs.get(DOCUMENT_END, tokenizer.eos_token))


def encode_dialogue(tokenizer, messages, not_learned=()) -> list[tuple[list[int], list[bool]]]:
    """Token ids of a whole dialogue, and which of them an assistant says (the ends of its turns included).

    Each answer stands behind the ids that it has before it when the dialogue is answered up to there. Where the chat
    template or the tokenizer changes earlier turns later on, one sequence cannot hold them all: then there are several.
    not_learned: places of answers, counted from the end, that are context only.
    """
    sequences, ids, learned = [], [], []
    for turn in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        context = context_of(tokenizer, messages[:turn])
        if context.ids[: len(ids)] != ids:
            sequences.append((ids, learned))
            ids, learned = [], []
        response = encode_answer(tokenizer, context, messages[turn]["content"])
        is_learned = turn - len(messages) not in not_learned
        learned = learned + [False] * (len(context.ids) - len(ids)) + [is_learned] * len(response)
        ids = context.ids + response
    return [*sequences, (ids, learned)]


def encoded(
    records: Iterable, encode: Callable, data: DataConfig, report, places: Callable = lambda record: [record.where]
) -> Iterator[tuple]:
    """(record, encode(record)) of the records that can be encoded, and for which it is not None.

    Another one is an error that names its place, or is counted in the report where data.on_error=skip.
    """
    for record in records:
        try:
            result = encode(record)
        except EncodingError as error:
            if data.on_error is OnError.error:
                raise UserError(f"{places(record)[0]}: {error}") from error
            for place in places(record):
                report.find("skipped", place, error.rule)
            continue
        if result is not None:
            yield record, result


def marked_text(tokenizer, ids: list[int], is_marked: list[bool]) -> str:
    """A sequence for people to read: the tokens that are marked stand in [[ ]]."""
    pieces = []
    for marked, part in groupby(zip(ids, is_marked, strict=True), key=lambda pair: pair[1]):
        text = decode_ids(tokenizer, [i for i, _ in part])
        pieces.append(f"[[{text}]]" if marked else text)
    return "".join(pieces)


def decode_response(tokenizer, ids: Sequence[int]) -> str:
    """The text of an answer's ids, as it stands behind its context: no space is lost, no control token hidden."""
    return decode_ids(tokenizer, ids).removeprefix(added_space(tokenizer, tokenizer.chat_template))


@lru_cache(maxsize=8)
def added_space(tokenizer, chat_template: str) -> str:
    """What the tokenizer puts before an answer that has no space of its own, e.g. Llama 2's behind a control token."""
    context = context_of(tokenizer, [{"role": "user", "content": "a"}])
    return decode_ids(tokenizer, answer_ids(tokenizer, context, "a")).removesuffix("a")


def decode_ids(tokenizer, ids: Sequence[int]) -> str:
    """The text of ids that stand within others, every space and control token included."""
    before = [tokenizer.eos_token_id]
    whole, known = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in ([*before, *ids], before))
    return whole.removeprefix(known)


def text_ids(tokenizer, text: str, **options) -> list[int]:
    """Token ids of a text that says itself where it begins."""
    return tokenizer(text, add_special_tokens=False, **options).input_ids


def first_ids(tokenizer) -> list[int]:
    """What the tokenizer puts before every text by default: BOS, or nothing."""
    default, bare = tokenizer("a").input_ids, text_ids(tokenizer, "a")
    place = next((i for i in range(len(default)) if default[i : i + len(bare)] == bare), 0)
    return default[:place]


def _ids_apart(tokenizer, text: str, **options) -> list[int]:
    """Token ids of a text within a larger one, whatever stands before it."""
    for before in (tokenizer.eos_token, "\n", ""):
        ids, known = (text_ids(tokenizer, part, **options) for part in (before + text, before))
        if ids[: len(known)] == known and decode_ids(tokenizer, ids[len(known) :]) == text:
            break
    return ids[len(known) :]

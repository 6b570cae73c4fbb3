"""Prompts within data.max_prompt_tokens, and what is done with longer ones."""

from bisect import bisect_left

from rlhf.config.schema import DataConfig, LongPrompts
from rlhf.errors import EncodingError
from rlhf.text.encoding import Context, context_of, encoded


def encode_prompts(tokenizer, prompts: list, data: DataConfig, report) -> tuple[list, list[list[int]]]:
    """The prompts that are kept, and their token ids."""
    kept = prompt_contexts(tokenizer, prompts, data, report)
    return [prompt for prompt, _ in kept], [context.ids for _, context in kept]


def prompt_contexts(tokenizer, prompts: list, data: DataConfig, report) -> list[tuple]:
    """(prompt, its context) of those that are kept."""

    def encode(prompt) -> Context | None:
        return fit_prompt(tokenizer, prompt.messages, data, prompt.where, report)

    kept = list(encoded(prompts, encode, data, report))
    if kept:
        report.show("prompts", f"{kept[0][1].text} ({len(kept[0][1].ids)} tokens)")
    return kept


def fit_prompt(tokenizer, messages, data: DataConfig, where: str, report) -> Context | None:
    """The context of an answer within data.max_prompt_tokens; None where it is longer and data.long_prompts=drop.

    Raises EncodingError for a longer one, unless it is to be cut or dropped, which the report counts.
    """
    context, limit = context_of(tokenizer, messages), data.max_prompt_tokens
    if len(context.ids) <= limit:
        return context
    if data.long_prompts is LongPrompts.error:
        raise EncodingError(
            f"the prompt has {len(context.ids)} tokens, more than data.max_prompt_tokens={limit}. Raise the limit, "
            "or choose data.long_prompts=cut (oldest turns first) or drop",
            "the prompt is over data.max_prompt_tokens",
        )
    if data.long_prompts is LongPrompts.drop:
        report.drop(where, len(context.ids), limit)
        return None
    report.cut(where, len(context.ids), limit)
    return cut(tokenizer, messages, limit)


def within(tokenizer, messages, limit: int) -> Context:
    """The context of an answer, cut where it has more tokens than the limit."""
    context = context_of(tokenizer, messages)
    return context if len(context.ids) <= limit else cut(tokenizer, messages, limit)


def cut(tokenizer, messages, limit: int) -> Context:
    """The context without its oldest turns; where the last one alone is too long, without that one's first words.

    The system turn and all that the template writes around the turns stay.
    """
    num_system = 1 if messages[0]["role"] == "system" else 0
    system, turns = tuple(messages[:num_system]), tuple(messages[num_system:])
    for first in range(2, len(turns), 2):  # a question goes with its answer
        context = context_of(tokenizer, system + turns[first:])
        if len(context.ids) <= limit:
            return context
    return _cut_last_turn(tokenizer, system, turns[-1]["content"], limit)


def _cut_last_turn(tokenizer, system: tuple, content: str, limit: int) -> Context:
    """The longest end of the last turn that fits and begins with a token of it."""
    starts = token_starts(tokenizer, content)[-limit:]

    def ending(place: int) -> Context:
        return context_of(tokenizer, (*system, {"role": "user", "content": content[starts[place] :]}))

    first = bisect_left(range(len(starts)), True, key=lambda place: len(ending(place).ids) <= limit)
    if first == len(starts):
        raise EncodingError(
            f"the system turn and the chat template alone have more tokens than data.max_prompt_tokens={limit}; "
            "raise the limit",
            "the system turn and the chat template alone are over data.max_prompt_tokens",
        )
    return ending(first)


def token_starts(tokenizer, text: str) -> list[int]:
    """The places in a text at which its tokens begin; every letter where the tokenizer does not tell."""
    if not tokenizer.is_fast:
        return list(range(len(text)))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    return sorted({start for start, _ in offsets})

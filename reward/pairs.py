"""Pairs of a better and a worse answer, `chosen` and `rejected`: rankings of two."""

from reward.ranks import TIES_BY_SCORE, Ranks, score
from rlhf.dialogues import check_dialogue, is_hh, parse_hh, parse_prompt_messages, text_turns
from rlhf.records import Row

PAIR_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
PAIR_SCORES += (("chosen_rating", "rejected_rating"),)
LOWER_SCORE = "chosen has the lower score of the two, and is taken as the better answer all the same"


def parse_pair(row: Row) -> tuple[tuple[dict, ...], tuple[str, str]]:
    """(messages of the prompt, (chosen, rejected)) of a row with `chosen` and `rejected`.

    With a prompt each is an answer, one assistant message, or the whole dialogue. Without, both are whole dialogues
    (messages or transcripts), and the prompt is their turns before the last; two texts hold no prompt.
    """
    said = {name: _said(row, name) for name in ("chosen", "rejected")}
    row = _without_answered_messages(row)
    has_prompt = row.has("prompt") or row.has("messages")
    prompt = parse_prompt_messages(row) if has_prompt else ()
    chosen, rejected = (_dialogue(prompt, value, row, name) for name, value in said.items())
    if chosen[:-1] != rejected[:-1]:
        rule = "fields 'chosen' and 'rejected' differ before their last turn; they must answer the same prompt"
        raise row.error(rule)
    return chosen[:-1], (chosen[-1]["content"], rejected[-1]["content"])


def pair_ranks(row: Row) -> tuple[Ranks, tuple[str, ...]]:
    """(ranks of chosen and rejected, notes for the data report): a tie where the record gives both the same score."""
    names = next((names for names in PAIR_SCORES if all(map(row.has, names))), None)
    if names is None:
        return (1, 2), ()
    chosen, rejected = (score(row, name, row.values[name]) for name in names)
    if chosen == rejected:
        return (1, 1), (TIES_BY_SCORE,)
    return (1, 2), () if chosen > rejected else (LOWER_SCORE,)


def _said(row, name):
    """A list of messages, or a text."""
    value = row.values.get(name)
    if value == []:
        raise row.error(f"field '{name}' is empty")
    if isinstance(value, list):
        return value
    text = row.text(name)
    return parse_hh(text) if is_hh(text) else text


def _without_answered_messages(row):
    """Public binarized sets have the chosen dialogue as `messages` too: with its answer, it is no prompt."""
    messages = row.values.get("messages")
    if not isinstance(messages, list) or not messages or _role(messages[-1]) != "assistant":
        return row
    return row.without("messages")


def _dialogue(prompt, said, row, name):
    """The whole dialogue: with a prompt, one that has the prompt's turns in it."""
    if isinstance(said, str) or _role(said[0]) == "assistant":
        if not prompt:
            if isinstance(said, str):
                text_turns(row, name)  # refuses a transcript of another form for what it is
            raise row.missing("prompt")
        said = [*prompt, *([{"role": "assistant", "content": said}] if isinstance(said, str) else said)]
    dialogue = check_dialogue(said, row, name)
    if dialogue[-1]["role"] != "assistant":
        raise row.error(f"field '{name}' must end with an answer of the assistant that is not empty")
    if not all(turn in dialogue[:-1] for turn in prompt) or (len(prompt) > 1 and dialogue[:-1] != prompt):
        raise row.error(f"field '{name}' must be one answer to the prompt, or the prompt's turns and one answer")
    return dialogue


def _role(message):
    return message.get("role") if isinstance(message, dict) else None

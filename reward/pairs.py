"""Pairs of a better and a worse answer, `chosen` and `rejected`: rankings of two."""

from reward.ranks import TIES_BY_SCORE, Ranks, score
from rlhf.data.columns import PAIR, PAIR_SCORES
from rlhf.data.dialogues import DIFFER, check_dialogue, is_hh, pair_prompt, parse_hh, parse_prompt_messages, with_system
from rlhf.data.messages import read_message, role_of
from rlhf.data.records import Row

LOWER_SCORE = "chosen has the lower score of the two, and is taken as the better answer all the same"


def parse_pair(row: Row) -> tuple[tuple[dict, ...], tuple[str, str]]:
    """(messages of the prompt, (chosen, rejected)) of a row with `chosen` and `rejected`.

    With a prompt each is an answer, one assistant message, or the whole dialogue. Without, both are whole dialogues
    (messages or transcripts), and the prompt is their turns before the last; two texts hold no prompt.
    """
    row = _without_answered_messages(row)
    if not row.has("prompt") and not row.has("messages"):
        return _split_dialogues(row)
    prompt = parse_prompt_messages(row)
    chosen, rejected = (_dialogue(prompt, _said(row, name), row, name) for name in PAIR)
    if chosen[:-1] != rejected[:-1]:
        raise row.error(DIFFER)
    return chosen[:-1], (chosen[-1]["content"], rejected[-1]["content"])


def _split_dialogues(row):
    said = {name: _said(row, name) for name in PAIR}
    prompt = pair_prompt(row)
    return prompt, tuple(read_message(messages[-1], row, name)["content"] for name, messages in said.items())


def pair_ranks(row: Row) -> Ranks:
    """The ranks of chosen and rejected: a tie where the record gives both the same score."""
    names = next((names for names in PAIR_SCORES if all(map(row.has, names))), None)
    if names is None:
        return 1, 2
    chosen, rejected = (score(row, name, row.values[name]) for name in names)
    if chosen == rejected:
        row.note(TIES_BY_SCORE)
        return 1, 1
    if chosen < rejected:
        row.note(LOWER_SCORE)
    return 1, 2


def _said(row, name):
    """A list of messages, or a text."""
    value = row.values.get(name)
    if value == []:
        raise row.error(f"field '{name}' is empty")
    if isinstance(value, list | dict):
        return value if isinstance(value, list) else [value]
    text = row.text(name)
    return parse_hh(text) if is_hh(text) else text


def _without_answered_messages(row):
    """Public binarized sets have the chosen dialogue as `messages` too: with its answer, it is no prompt."""
    messages = row.values.get("messages")
    is_answered = isinstance(messages, list) and messages and role_of(messages[-1]) == "assistant"
    return row.without("messages") if is_answered else row


def _dialogue(prompt, said, row, name):
    """The whole dialogue: the prompt and the answer, or one that has the prompt's turns in it."""
    if isinstance(said, str):
        return (*prompt, {"role": "assistant", "content": said})
    if role_of(said[0]) == "assistant":
        return check_dialogue([*prompt, *said], row, name)
    dialogue = with_system(row, check_dialogue(said, row, name))
    if dialogue[-1]["role"] != "assistant":
        raise row.error(f"field '{name}' must end with an answer of the assistant that is not empty")
    if not _is_prompt_of(prompt, dialogue[:-1]):
        raise row.error(f"field '{name}' must be one answer to the prompt, or the prompt's turns and one answer")
    return dialogue


def _is_prompt_of(prompt, turns):
    """Whether a prompt is all the turns before an answer, or the one of them that public sets repeat as `prompt`."""
    prompt, turns = ([(turn["role"], turn["content"].strip()) for turn in some] for some in (prompt, turns))
    num_said = sum(role != "system" for role, _ in prompt)
    return prompt == turns or (num_said == 1 and set(prompt) <= set(turns))

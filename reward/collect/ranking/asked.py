"""New items, checked: a prompt with 2 to 9 answers that differ, and where it is gold their right order."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from reward.collect.refusals import Refusal
from reward.collect.store.settings import MAX_ANSWERS, MIN_ANSWERS
from reward.collect.texts import is_text
from rlhf.data.dialogues import parse_prompt_messages
from rlhf.data.records import Row
from rlhf.errors import UserError
from rlhf.hashing import json_sha256, text_sha256

MAX_NOTES = 20  # of each import; the counts hold all
MORE = "... and more of the kind"
MIDDLE_PRIORITY = 0.5  # of items that no reward model placed, among those that one did, from 0 to 1


@dataclass(frozen=True)
class NewResponse:
    text: str
    source: dict  # {policy, manifest_sha256, temperature, seed, sample} or whatever an import says


@dataclass(frozen=True)
class NewItem:
    """A prompt and the answers to be ranked."""

    messages: list[dict]  # ends with a user turn
    responses: list[NewResponse]
    where: str  # for messages, e.g. "answers.jsonl:3"
    prompt_id: str | None = None
    group: str | None = None
    meta: dict = field(default_factory=dict)
    gold_ranks: list[int] | None = None  # of each response; makes it a gold item
    comparison: str | None = None
    priority: float = MIDDLE_PRIORITY


@dataclass
class Added:
    """What came of new items."""

    items: int = 0
    prompts: int = 0  # of these, new
    merged: int = 0  # answers that had the very text of another answer of their item
    already_there: int = 0  # items with the very answers of one that is there
    identical: int = 0  # comparison items where all policies gave the same answer: ties that nobody needs to rank
    notes: list[str] = field(default_factory=list)

    def note(self, where: str, what: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(f"{where}: {what}")
        elif len(self.notes) == MAX_NOTES:
            self.notes.append(MORE)

    def counts(self) -> dict[str, int]:
        return {name: count for name, count in vars(self).items() if name != "notes"}

    def add(self, other: "Added") -> None:
        """Takes over what came of further items."""
        for name, count in other.counts().items():
            setattr(self, name, getattr(self, name) + count)
        self.notes = [note for note in self.notes + other.notes if note != MORE]
        self.notes = self.notes[:MAX_NOTES] + [MORE] * (len(self.notes) > MAX_NOTES or MORE in other.notes)


@dataclass(frozen=True)
class Asked:
    """A new item that can be ranked, with each of its answers once."""

    new: NewItem
    messages: list[dict]
    prompt_sha256: str
    sources: dict[str, list[dict]]  # text -> where it is from
    ranks: dict[str, int] | None  # text -> gold rank, in the order of sources

    @property
    def kind(self) -> str:
        return "normal" if self.ranks is None else "gold"

    @cached_property
    def identity(self) -> str:
        """Equal for two items exactly if they ask the same of the same answers to the same prompt."""
        answers = (text_sha256(text) for text in self.sources)
        return identity(self.prompt_sha256, answers, self.kind, self.new.comparison)

    @property
    def order(self) -> tuple | None:
        """Equal for two gold items of the same answers exactly if they rank them alike; None for other items."""
        return self.ranks and gold_order({text_sha256(text): rank for text, rank in self.ranks.items()})


def identity(prompt_sha256: str, answers: Iterable[str], kind: str, comparison: str | None) -> str:
    """answers: the sha256 of each."""
    return json_sha256([prompt_sha256, sorted(answers), kind, comparison])


def gold_order(ranks: dict[str, int]) -> tuple:
    """How many answers each is below, in the order of their names."""
    return tuple(sum(other < ranks[name] for other in ranks.values()) for name in sorted(ranks))


def checked(new: NewItem, added: Added) -> Asked:
    """The item, where it can be ranked; its merged answers are counted in `added`. Else raises Refusal."""
    messages = _messages(new)
    sources, ranks = _merged(new, added)
    _check_count(new, len(sources))
    return Asked(new, messages, json_sha256(messages), sources, ranks)


def _messages(new: NewItem) -> list[dict]:
    try:
        messages = list(parse_prompt_messages(Row({"messages": list(new.messages)}, new.where)))
    except UserError as error:
        raise Refusal(str(error)) from error
    if not all(is_text(message["content"]) for message in messages):
        raise Refusal(f"{new.where}: the prompt has a NUL or half a character in it; take it out")
    return messages


def _merged(new: NewItem, added: Added) -> tuple[dict[str, list[dict]], dict[str, int] | None]:
    """(text -> its sources, text -> its rank or None without gold ranks), each text once."""
    sources, ranks = {}, {}
    for i, response in enumerate(new.responses):
        _check_answer(new, i, response.text)
        if response.text in sources:
            added.merged += 1
            if new.comparison is None:  # there it is a tie, and counted as one
                added.note(new.where, f"answer {i + 1} has the text of an earlier one; they are one answer now")
        known = sources.setdefault(response.text, [])
        known += [response.source] if response.source not in known else []
    if new.gold_ranks is None:
        return sources, None
    _check_gold(new)
    for response, rank in zip(new.responses, new.gold_ranks, strict=True):
        if ranks.setdefault(response.text, rank) != rank:
            raise Refusal(f"{new.where}: gold_ranks puts the same answer at {ranks[response.text]} and at {rank}")
    return sources, ranks


def _check_answer(new: NewItem, i: int, text) -> None:
    if not isinstance(text, str) or not text.strip():
        raise Refusal(f"{new.where}: answer {i + 1} is empty; leave it out")
    if not is_text(text):
        raise Refusal(f"{new.where}: answer {i + 1} has a NUL or half a character in it; take it out")


def _check_gold(new: NewItem) -> None:
    ranks = new.gold_ranks
    if new.comparison is not None:
        raise Refusal(f"{new.where}: an item of comparison {new.comparison!r} cannot be gold; give one of the two")
    if len(ranks) != len(new.responses):
        raise Refusal(f"{new.where}: gold_ranks has {len(ranks)} entries for {len(new.responses)} answers")
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise Refusal(f"{new.where}: gold_ranks has {rank!r:.40}; a rank is a whole number from 1, the best")
    if len(set(ranks)) == 1:
        raise Refusal(f"{new.where}: gold_ranks ties all answers, which nobody can get wrong; rank one above another")


def _check_count(new: NewItem, num_answers: int) -> None:
    if num_answers == 1 and len(new.responses) > 1:
        if new.comparison is not None:
            return
        raise Refusal(f"{new.where}: all {len(new.responses)} answers are the same text; need 2 that differ")
    if not MIN_ANSWERS <= num_answers <= MAX_ANSWERS:
        rule = f"people rank {MIN_ANSWERS} to {MAX_ANSWERS} different answers"
        raise Refusal(f"{new.where}: has {num_answers} answer{'s' * (num_answers != 1)}; {rule}")

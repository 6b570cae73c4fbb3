"""Answers in: prompts with 2 to 9 answers each become items in the queue. What is there already is not added again."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect import audit
from reward.collect.refusals import Refusal
from reward.collect.settings import MAX_ANSWERS, MIN_ANSWERS, Settings
from reward.collect.tables import Collection, Guidelines, Item, Prompt, Response, Slot
from reward.collect.texts import is_text
from rlhf.dialogues import parse_prompt_messages
from rlhf.errors import UserError
from rlhf.hashing import json_sha256, text_sha256
from rlhf.records import Row

CHUNK = 200  # items that are looked up and written together
MAX_NOTES = 20  # of each import; the counts hold all
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
            self.notes.append("... and more of the kind")


def collection_of(session: Session) -> Collection:
    """The one collection of this database."""
    collection = session.get(Collection, 1)
    if collection is None:
        raise UserError("this database holds no collection; make one with python -m reward.collect init")
    return collection


def settings_of(session: Session) -> Settings:
    return Settings.from_dict(collection_of(session).settings)


def guidelines_in_force(session: Session) -> Guidelines:
    """The newest version; a collection is made with one."""
    return session.scalars(select(Guidelines).order_by(Guidelines.version.desc()).limit(1)).one()


def with_texts(session: Session, response_ids: list[str]) -> list[tuple[str, str]]:
    """(id, text) of these responses, in this order."""
    found = select(Response.id, Response.text).where(Response.id.in_(response_ids))
    texts = dict(session.execute(found).all())
    return [(response_id, texts[response_id]) for response_id in response_ids]


def add_items(session: Session, new_items: Iterable[NewItem], actor: str, now: float) -> Added:
    """Puts items into the queue, each with as many slots as people should rank it.

    Raises Refusal at the first item that cannot be ranked; its message begins with the item's `where`.
    """
    audit.one_writer(session)
    settings, added, rest = settings_of(session), Added(), iter(new_items)
    while chunk := list(islice(rest, CHUNK)):
        asked = [_asked(new, added) for new in chunk]
        there = _There(session, asked)
        for ask in asked:
            _add_item(there, ask, settings, added, float(now))
        there.write(session)
    counts = {name: count for name, count in vars(added).items() if name != "notes"}
    audit.append(session, actor, "add items", "items", after=counts, now=now)
    return added


def _add_item(there: "_There", ask: "_Asked", settings: Settings, added: Added, now: float) -> None:
    new, ranks = ask.new, ask.ranks
    prompt = _prompt(there, ask, added, now)
    responses = {text: _response(there, prompt, text, sources, now).id for text, sources in ask.sources.items()}
    response_ids = list(responses.values())
    item = Item(
        id=uuid4().hex,
        prompt_id=prompt.id,
        response_ids=response_ids,
        content_sha256=content_sha256(response_ids),
        kind="normal" if ranks is None else "gold",
        state="open" if len(response_ids) > 1 else "identical",
        gold_ranks=ranks and dict(zip(response_ids, ranks.values(), strict=True)),
        comparison=new.comparison,
        priority=float(new.priority),
        meta=new.meta if new.comparison is None else {**new.meta, "policies": _policies(ask, responses)},
        created_at=now,
    )
    if _is_there(there, item, new):
        added.already_there += 1
        return
    there.items[_identity(item)] = item
    added.items += 1
    added.identical += item.state == "identical"
    if item.kind == "normal" and item.state == "open":
        there.slots += [new_slot(item.id, n) for n in range(_num_slots(settings, new))]


def _policies(ask: "_Asked", responses: dict[str, str]) -> dict[str, list[str]]:
    """Response id -> the policies that gave it here: a response's sources may grow by what others say later."""
    return {
        responses[text]: sorted({str(source["policy"]) for source in sources if source.get("policy")})
        for text, sources in ask.sources.items()
    }


def content_sha256(response_ids: Iterable[str]) -> str:
    """Equal for two items exactly if they ask to rank the same responses."""
    return json_sha256(sorted(response_ids))


# What is asked for


@dataclass(frozen=True)
class _Asked:
    """A new item that can be ranked, with each of its answers once."""

    new: NewItem
    messages: list[dict]
    prompt_sha256: str
    sources: dict[str, list[dict]]  # text -> where it is from
    ranks: dict[str, int] | None  # text -> gold rank, in the order of sources


def _asked(new: NewItem, added: Added) -> _Asked:
    messages = _messages(new)
    sources, ranks = _merged(new, added)
    _check_count(new, len(sources))
    return _Asked(new, messages, json_sha256(messages), sources, ranks)


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


# What is there


class _There:
    """What the database holds of a chunk of items, and what is added to it: looked up and written in one go."""

    def __init__(self, session: Session, asked: list[_Asked]):
        hashes = {ask.prompt_sha256 for ask in asked}
        prompts = session.scalars(select(Prompt).where(Prompt.content_sha256.in_(hashes)))
        self.prompts = {prompt.content_sha256: prompt for prompt in prompts}
        ids = [prompt.id for prompt in self.prompts.values()]
        responses = session.scalars(select(Response).where(Response.prompt_id.in_(ids)))
        self.responses = {(response.prompt_id, response.text): response for response in responses}
        items = session.scalars(select(Item).where(Item.prompt_id.in_(ids), Item.state != "cancelled"))
        self.items = {_identity(item): item for item in items}
        self.slots: list[Slot] = []

    def write(self, session: Session) -> None:
        for rows in (self.prompts.values(), self.responses.values(), self.items.values(), self.slots):
            session.add_all(rows)
            session.flush()  # in this order: each refers to the one before


def _prompt(there: _There, ask: _Asked, added: Added, now: float) -> Prompt:
    """The prompt with these messages. Where it is there already, its id and its group stay as they were."""
    new, prompt = ask.new, there.prompts.get(ask.prompt_sha256)
    if prompt is None:
        names = {"external_id": new.prompt_id, "group": new.group, "created_at": now}
        prompt = Prompt(id=uuid4().hex, messages=ask.messages, content_sha256=ask.prompt_sha256, **names)
        there.prompts[ask.prompt_sha256] = prompt
        added.prompts += 1
    elif new.group is not None and new.group != prompt.group:
        added.note(new.where, f"the prompt is there with group {prompt.group!r}, which stays; not {new.group!r}")
    return prompt


def _response(there: _There, prompt: Prompt, text: str, sources: list[dict], now: float) -> Response:
    response = there.responses.get((prompt.id, text))
    if response is None:
        names = {"prompt_id": prompt.id, "content_sha256": text_sha256(text), "created_at": now}
        response = there.responses[prompt.id, text] = Response(id=uuid4().hex, text=text, sources=[], **names)
    response.sources = response.sources + [source for source in sources if source not in response.sources]
    return response


def _identity(item: Item) -> tuple:
    return item.content_sha256, item.kind, item.comparison


def _is_there(there: _There, item: Item, new: NewItem) -> bool:
    same = there.items.get(_identity(item))
    if same is not None and _order(same.gold_ranks) != _order(item.gold_ranks):
        raise Refusal(f"{new.where}: a gold item with these answers is there already, and ranks them otherwise")
    return same is not None


def _order(gold_ranks: dict | None) -> dict | None:
    return gold_ranks and {one: sum(other < rank for other in gold_ranks.values()) for one, rank in gold_ranks.items()}


# Slots


def _num_slots(settings: Settings, new: NewItem) -> int:
    """By a hash of the content, so that the same items get second opinions whenever they are imported."""
    said = [list(new.messages), sorted(response.text for response in new.responses), new.comparison]
    share = share_of("agreement", said)
    return settings.agreement_overlap if share < settings.agreement_share else settings.overlap


def new_slot(item_id: str, n: int) -> Slot:
    """A turn that nobody has taken yet."""
    return Slot(id=uuid4().hex, item_id=item_id, n=n, state="open")


def share_of(purpose: str, *said) -> float:
    """A number in [0, 1) that looks random and depends on the arguments alone."""
    return int(json_sha256([purpose, *said])[:13], 16) / 16**13  # 52 bits: exact in a float

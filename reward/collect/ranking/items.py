"""Answers in: prompts with 2 to 9 answers each become items in the queue. What is there already is not added again."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect.ranking.asked import (
    MIDDLE_PRIORITY,
    Added,
    Asked,
    NewItem,
    NewResponse,
    checked,
    gold_order,
    identity,
)
from reward.collect.refusals import Refusal
from reward.collect.store import audit
from reward.collect.store.collection import settings_of
from reward.collect.store.database import Database
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Item, Prompt, Response, Slot
from rlhf.hashing import as_share, json_sha256, text_sha256

# Of the file beside this one; whoever adds items finds them here.
__all__ = ["MIDDLE_PRIORITY", "Added", "NewItem", "NewResponse", "add_in_chunks", "add_items", "check_items"]

CHUNK = 200  # items that are looked up and written together
FIRST_CHUNK = 20
LOCK_SECONDS = 0.25  # that a chunk of an import may hold up other writers, as near as can be
PAUSE = 0.12  # least seconds between chunks: other processes that wait for SQLite look every 0.1 s whether it is free


def add_items(session: Session, new_items: Iterable[NewItem], actor: str, now: float) -> Added:
    """Puts items into the queue, each with as many slots as people should rank it, in one transaction.

    Raises Refusal at the first item that cannot be ranked; its message begins with the item's `where`.
    """
    audit.one_writer(session)
    settings, added = settings_of(session), Added()
    for chunk in chunks(new_items):
        asked = [checked(new, added) for new in chunk]
        there = _There(session, asked)
        for ask in asked:
            _add_item(there, ask, settings, added, float(now))
        there.write(session)
    audit.append(session, actor, "add items", "items", after=added.counts(), now=now)
    return added


def check_items(database: Database, new_items: Iterable[NewItem]) -> Added:
    """What would come of adding these items now. Writes nothing and holds up nobody; raises what add_items would."""
    added, known = Added(), _Known()
    for chunk in chunks(new_items):
        asked = [checked(new, added) for new in chunk]
        with database.read() as session:
            known.update(_There(session, asked).known)
        for ask in asked:
            known.take(ask, added)
    return added


def add_in_chunks(database: Database, new_items: Iterable[NewItem], actor: str) -> Iterator[Added]:
    """Adds items a chunk at a time, each in a transaction with an audit row, and yields what came of each.

    Others write in between, for as long as each chunk took; chunks are as large as take LOCK_SECONDS. Cut short, it has
    added the first chunks whole; the same items again add the rest.
    """
    rest, size = iter(new_items), FIRST_CHUNK
    while chunk := list(islice(rest, size)):
        with database.write() as session:
            session.connection()  # waits for its turn
            began = time.monotonic()
            added = add_items(session, chunk, actor, time.time())
        seconds = time.monotonic() - began
        size = max(1, min(CHUNK, round(len(chunk) * LOCK_SECONDS / seconds)))
        yield added
        if database.is_sqlite:
            time.sleep(max(PAUSE, min(seconds, LOCK_SECONDS)))


def chunks(new_items: Iterable[NewItem]) -> Iterator[list[NewItem]]:
    rest = iter(new_items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _add_item(there: "_There", ask: Asked, settings: Settings, added: Added, now: float) -> None:
    new, ranks, is_new = ask.new, ask.ranks, there.known.take(ask, added)
    prompt = _prompt(there, ask, now)
    responses = {text: _response(there, prompt, text, sources, now).id for text, sources in ask.sources.items()}
    response_ids = list(responses.values())
    if not is_new:
        return
    item = Item(
        id=uuid4().hex,
        prompt_id=prompt.id,
        response_ids=response_ids,
        content_sha256=content_sha256(response_ids),
        kind=ask.kind,
        state="open" if len(response_ids) > 1 else "identical",
        gold_ranks=ranks and dict(zip(response_ids, ranks.values(), strict=True)),
        comparison=new.comparison,
        priority=float(new.priority),
        meta=new.meta if new.comparison is None else {**new.meta, "policies": _policies(ask, responses)},
        created_at=now,
    )
    there.items.append(item)
    if item.kind == "normal" and item.state == "open":
        there.slots += [new_slot(item.id, n) for n in range(_num_slots(settings, new))]


def _policies(ask: Asked, responses: dict[str, str]) -> dict[str, list[str]]:
    """Response id -> the policies that gave it here: a response's sources may grow by what others say later."""
    return {
        responses[text]: sorted({str(source["policy"]) for source in sources if source.get("policy")})
        for text, sources in ask.sources.items()
    }


def content_sha256(response_ids: Iterable[str]) -> str:
    """Equal for two items exactly if they ask to rank the same responses."""
    return json_sha256(sorted(response_ids))


# What is there


@dataclass
class _Known:
    """What is there, and what was taken since, by digests alone: those of a whole file may be held."""

    groups: dict[str, str | None] = field(default_factory=dict)  # of a prompt -> its group
    orders: dict[str, tuple | None] = field(default_factory=dict)  # of an item -> its gold order

    def update(self, other: "_Known") -> None:
        self.groups |= other.groups
        self.orders |= other.orders

    def take(self, ask: Asked, added: Added) -> bool:
        """Whether the item is new, which it is no more from now on; counted in `added`."""
        new = ask.new
        if ask.prompt_sha256 not in self.groups:
            self.groups[ask.prompt_sha256] = new.group
            added.prompts += 1
        elif new.group not in (None, group := self.groups[ask.prompt_sha256]):
            added.note(new.where, f"the prompt is there with group {group!r}, which stays; not {new.group!r}")
        if ask.identity in self.orders:
            if self.orders[ask.identity] != ask.order:
                raise Refusal(f"{new.where}: a gold item with these answers is there already, and ranks them otherwise")
            added.already_there += 1
            return False
        self.orders[ask.identity] = ask.order
        added.items += 1
        added.identical += len(ask.sources) == 1
        return True


class _There:
    """What the database holds of a chunk of items, and what is added to it: looked up and written in one go."""

    def __init__(self, session: Session, asked: list[Asked]):
        hashes = {ask.prompt_sha256 for ask in asked}
        prompts = session.scalars(select(Prompt).where(Prompt.content_sha256.in_(hashes)))
        self.prompts = {prompt.content_sha256: prompt for prompt in prompts}
        by_id = {prompt.id: prompt for prompt in self.prompts.values()}
        responses = session.scalars(select(Response).where(Response.prompt_id.in_(by_id)))
        self.responses = {(response.prompt_id, response.text): response for response in responses}
        items = session.scalars(select(Item).where(Item.prompt_id.in_(by_id), Item.state != "cancelled"))
        texts = {response.id: response.content_sha256 for response in self.responses.values()}
        groups = {sha256: prompt.group for sha256, prompt in self.prompts.items()}
        self.known = _Known(groups, dict(_identified(item, by_id[item.prompt_id], texts) for item in items))
        self.items: list[Item] = []
        self.slots: list[Slot] = []

    def write(self, session: Session) -> None:
        for rows in (self.prompts.values(), self.responses.values(), self.items, self.slots):
            session.add_all(rows)
            session.flush()  # in this order: each refers to the one before


def _identified(item: Item, prompt: Prompt, texts: dict[str, str]) -> tuple[str, tuple | None]:
    """(identity, gold order) of an item that is there. texts: the sha256 of each response, by its id."""
    order = item.gold_ranks and gold_order({texts.get(one, one): rank for one, rank in item.gold_ranks.items()})
    answers = [texts.get(one, one) for one in item.response_ids]
    return identity(prompt.content_sha256, answers, item.kind, item.comparison), order


def _prompt(there: _There, ask: Asked, now: float) -> Prompt:
    """The prompt with these messages. Where it is there already, its id and its group stay as they were."""
    new, prompt = ask.new, there.prompts.get(ask.prompt_sha256)
    if prompt is None:
        prompt = Prompt(
            id=uuid4().hex,
            external_id=new.prompt_id,
            messages=ask.messages,
            group=new.group,
            content_sha256=ask.prompt_sha256,
            created_at=now,
        )
        there.prompts[ask.prompt_sha256] = prompt
    return prompt


def _response(there: _There, prompt: Prompt, text: str, sources: list[dict], now: float) -> Response:
    response = there.responses.get((prompt.id, text))
    if response is None:
        response = there.responses[prompt.id, text] = Response(
            id=uuid4().hex,
            prompt_id=prompt.id,
            text=text,
            sources=[],
            content_sha256=text_sha256(text),
            created_at=now,
        )
    response.sources = response.sources + [source for source in sources if source not in response.sources]
    return response


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
    return as_share(json_sha256([purpose, *said]))

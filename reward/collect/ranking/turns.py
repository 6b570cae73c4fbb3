"""What a person's next turn brings: as a rule a normal item, at times a gold item or a repeat of one they have ranked.

When those come follows from a hash of (seed, annotator, turn); the seed never leaves the server. Both are made the
moment they are due, as a slot that is then claimed as any other.
"""

from collections import deque
from functools import lru_cache
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, union
from sqlalchemy.orm import Session, aliased

from reward.collect.ranking.items import new_slot, share_of
from reward.collect.store.collection import collection_of, settings_of
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Item, Skip, Slot
from rlhf.hashing import json_sha256

BLOCK = 500  # turns whose kinds are found out together
REPEAT_GAP = 5  # items that a person submits between an item and its repeat, or more


def unseen(annotator_id: str) -> ColumnElement[bool]:
    """The item's very responses were never in front of this person, in this item or in another."""
    seen = aliased(Item)
    taken = select(seen.content_sha256).join(Slot, Slot.item_id == seen.id).where(Slot.annotator_id == annotator_id)
    skipped = select(seen.content_sha256).join(Skip, Skip.item_id == seen.id).where(Skip.annotator_id == annotator_id)
    return Item.content_sha256.not_in(union(taken, skipped))


def is_free(now: float) -> ColumnElement[bool]:
    """The slot is for whoever comes: nobody holds it, or its holder was not heard from."""
    return or_(Slot.state == "open", and_(Slot.state == "held", Slot.lease_until < now))


def gold_or_repeat(session: Session, annotator_id: str, now: float) -> str | None:
    """The id of the gold item or repeat that is due at this person's turn, with a free slot; None for a normal item."""
    seed, settings = collection_of(session).seed, settings_of(session)
    kind = _kind_of_turn(seed, annotator_id, _num_turns(session, annotator_id), settings)
    choices = {"gold": _golds, "repeat": _repeatable}.get(kind, lambda *_: [])(session, annotator_id)
    if not choices:
        return None
    item_id = min(choices, key=lambda choice: share_of(kind, seed, annotator_id, choice))
    if kind == "repeat":
        item_id = _repeat_of(session, item_id, annotator_id, seed, now)
    if not session.scalar(select(exists().where(Slot.item_id == item_id, is_free(now)))):
        last = session.scalar(select(func.max(Slot.n)).where(Slot.item_id == item_id))
        session.add(new_slot(item_id, 0 if last is None else last + 1))
        session.flush()
    return item_id


def turns_left(session: Session, annotator_id: str, num_normal: int) -> int:
    """How many items this person is still to see, if nobody else takes any of the num_normal that are free.

    Counts down by one with each item, gold and repeats too, so that the count does not tell them from others.
    """
    seed, settings = collection_of(session).seed, settings_of(session)
    held = (
        select(Item.kind).join(Slot).where(held_by(annotator_id), Item.state != "cancelled").order_by(Slot.started_at)
    )
    held = list(session.scalars(held))
    golds, repeatable = len(_golds(session, annotator_id)), len(_repeatable(session, annotator_id))
    recent = deque(_may_repeat(row) for row in reversed(_submitted(session, annotator_id, limit=REPEAT_GAP)))
    turn, first = 0, _num_turns(session, annotator_id)
    while True:
        kind = _kind_of_turn(seed, annotator_id, first + turn, settings)
        if turn < len(held):
            kind = held[turn]
        elif kind == "gold" and golds:
            golds -= 1
        elif kind == "repeat" and repeatable:
            repeatable -= 1
        elif num_normal:
            kind, num_normal = "normal", num_normal - 1
        else:
            return turn
        turn += 1
        recent.append(kind == "normal")
        repeatable += recent.popleft() if len(recent) > REPEAT_GAP else 0


def held_by(annotator_id: str) -> ColumnElement[bool]:
    """The slot is in front of this person. Also after its lease, as long as nobody else has taken it."""
    return and_(Slot.annotator_id == annotator_id, Slot.state == "held")


def _kind_of_turn(seed: str, annotator_id: str, turn: int, settings: Settings) -> str:
    block, place = divmod(turn, BLOCK)
    return _kinds(seed, annotator_id, block, settings.gold_share, settings.gold_share + settings.repeat_share)[place]


@lru_cache(maxsize=1000)  # of some kB; each page looks ahead over all turns that are left, which may be thousands
def _kinds(seed: str, annotator_id: str, block: int, gold: float, gold_or_repeat: float) -> tuple[str, ...]:
    """The kinds of the turns of a block, one after the other."""
    shares = (share_of("turn", seed, annotator_id, block * BLOCK + place) for place in range(BLOCK))
    return tuple("gold" if one < gold else "repeat" if one < gold_or_repeat else "normal" for one in shares)


def _num_turns(session, annotator_id: str) -> int:
    done = select(func.count()).where(Slot.annotator_id == annotator_id, Slot.state == "done")
    skipped = select(func.count()).where(Skip.annotator_id == annotator_id)
    return session.scalar(done) + session.scalar(skipped)


def _golds(session, annotator_id: str) -> list[str]:
    golds = select(Item.id).where(Item.kind == "gold", Item.state == "open", unseen(annotator_id))
    return list(session.scalars(golds))


# Repeats


def _repeatable(session, annotator_id: str) -> list[str]:
    """Items that this person ranked at least REPEAT_GAP items ago and was not asked about again."""
    mine = or_(
        Item.id.in_(select(Slot.item_id).where(Slot.annotator_id == annotator_id)),
        Item.id.in_(select(Skip.item_id).where(Skip.annotator_id == annotator_id)),
    )
    repeated = set(session.scalars(select(Item.repeat_of).where(Item.kind == "repeat", mine)))
    earlier = _submitted(session, annotator_id)[REPEAT_GAP:]
    return [row.item_id for row in earlier if _may_repeat(row) and row.item_id not in repeated]


def _submitted(session, annotator_id: str, limit: int | None = None) -> list:
    """(item_id, kind, not_rankable) of what this person submitted, the latest first."""
    rows = select(Annotation.item_id, Item.kind, Annotation.not_rankable).join(Item, Item.id == Annotation.item_id)
    rows = rows.where(Annotation.annotator_id == annotator_id, Annotation.revision == 1)
    return session.execute(rows.order_by(Annotation.submitted_at.desc(), Annotation.id).limit(limit)).all()


def _may_repeat(row) -> bool:
    return row.kind == "normal" and row.not_rankable is None


def _repeat_of(session, item_id: str, annotator_id: str, seed: str, now: float) -> str:
    """The id of this person's repeat of the item. Always the same, so that two tabs do not make two."""
    digest = json_sha256(["repeat", seed, item_id, annotator_id])
    repeat_id = UUID(digest[:32], version=4).hex  # as ids of other items look
    if session.get(Item, repeat_id) is None:
        first = session.get(Item, item_id)
        again = Item(
            id=repeat_id,
            prompt_id=first.prompt_id,
            response_ids=first.response_ids,
            content_sha256=first.content_sha256,
            kind="repeat",
            repeat_of=item_id,
            state="open",
            priority=first.priority,
            meta={},
            created_at=now,
        )
        session.add(again)
        session.flush()
    return repeat_id

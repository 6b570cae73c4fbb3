"""Who ranks what next. A turn at an item is a slot; it is taken by one UPDATE, and lent for a while only.

What is handed out has one shape. Nothing in it, and not the way it is lent, tells a gold item or a repeat from others.
"""

import math
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import exists, func, select, union, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from reward.collect.people import paused
from reward.collect.ranking.turns import gold_or_repeat, held_by, is_free, turns_left, unseen
from reward.collect.refusals import Conflict, NotFound, Refusal
from reward.collect.store import audit
from reward.collect.store.collection import collection_of, settings_of, with_texts
from reward.collect.store.tables import Annotator, Draft, Flag, Item, Prompt, Skip, Slot
from reward.collect.texts import clean_text
from rlhf.hashing import text_sha256

ATTEMPTS = 5  # at taking a slot, where others take it at the same moment
MAX_REASON, MAX_NOTE = 200, 2_000  # characters


@dataclass(frozen=True)
class Work:
    """An item in front of one person."""

    slot_id: str
    item_id: str
    messages: list[dict]
    responses: list[tuple[str, str]]  # (response id, text) in this person's order of display
    lease_until: float  # 0.0 where the item went to somebody else
    draft: dict | None  # what they have entered so far
    draft_rev: int


@dataclass(frozen=True)
class NoWork:
    reason: str  # paused, empty, lease_wait, review, all_done
    message: str
    retry_after: int | None = None  # seconds


@dataclass(frozen=True)
class Progress:
    """Of one person. How far all are is for leads (quality.progress_report): it can tell when a gold item came."""

    own_done: int
    left_for_me: int


MESSAGES = {
    "paused": paused.MESSAGE,
    "empty": "Nothing is queued yet.",
    "lease_wait": "Others are at work on all that is left. What they give back comes to you.",
    "review": "What is left waits for a decision of whoever leads this collection.",
    "all_done": "There is nothing left for you at the moment. What you have submitted is stored.",
}


def next_work(session: Session, annotator: Annotator, now: float) -> Work | NoWork:
    """What this person is to rank now: what they hold already, else a new turn."""
    audit.one_writer(session)  # before any row is locked: a turn that is made here is told of in the audit
    me = select(Annotator.status).where(Annotator.id == annotator.id)
    if session.scalar(me.with_for_update(key_share=True)) == "paused":  # locked: one tab of theirs after the other
        return NoWork("paused", MESSAGES["paused"])
    lease = settings_of(session).lease_seconds
    slot_id = _hold_again(session, annotator.id, now + lease)
    for _ in range(ATTEMPTS):
        if slot_id is not None:
            return work_of(session, annotator, slot_id)
        try:
            with session.begin_nested():
                slot_id = _take_turn(session, annotator.id, now, now + lease)
        except IntegrityError:  # somebody took that very turn at the same moment
            continue
        if slot_id is None:
            return _why_no_work(session, annotator.id, now)
    return NoWork("lease_wait", MESSAGES["lease_wait"], 1)


def _hold_again(session, annotator_id: str, lease_until: float) -> str | None:
    """The slot that this person holds, lent anew: a reload shows the same item."""
    first = select(Slot.id).join(Item).where(held_by(annotator_id), Item.state != "cancelled")
    first = first.order_by(Slot.started_at, Slot.id).limit(1).scalar_subquery()
    lent = update(Slot).where(Slot.id == first, held_by(annotator_id)).values(lease_until=lease_until)
    return session.scalar(_as_sql(lent.returning(Slot.id)))


def _take_turn(session, annotator_id: str, now: float, lease_until: float) -> str | None:
    item_id = gold_or_repeat(session, annotator_id, now)
    taken = item_id and _claim(session, annotator_id, now, lease_until, Item.id == item_id)
    return taken or _claim(session, annotator_id, now, lease_until, Item.kind == "normal", unseen(annotator_id))


def _claim(session, annotator_id: str, now: float, lease_until: float, *wanted) -> str | None:
    """A free slot, now this person's: of high priority first, then of items that fewer people have had.

    The second opinions of the agreement share come among the first ones (n counts anew from `overlap` on): agreement
    can be measured from the first day.
    """
    overlap = settings_of(session).overlap
    free = select(Slot.id).join(Item).where(Item.state == "open", is_free(now), *wanted)
    free = free.order_by(Item.priority.desc(), Slot.n % overlap, Item.id, Slot.n).limit(1)
    free = free.with_for_update(of=Slot, skip_locked=True)  # SQLite has one writer at a time, and no such words
    lent = {"lease_until": lease_until, "started_at": now}
    claim = update(Slot).where(Slot.id == free.scalar_subquery())
    return session.scalar(_as_sql(claim.values(annotator_id=annotator_id, state="held", **lent).returning(Slot.id)))


def _as_sql(statement):
    """Rows of this session that are in memory stay as they are; reload those that you need."""
    return statement.execution_options(synchronize_session=False)


def _why_no_work(session, annotator_id: str, now: float) -> NoWork:
    undone = select(func.min(func.coalesce(Slot.lease_until, now))).join(Item)
    undone = undone.where(Slot.state != "done", Item.kind == "normal", unseen(annotator_id))
    lease_until = session.scalar(undone.where(Item.state == "open"))
    if lease_until is not None:
        return NoWork("lease_wait", MESSAGES["lease_wait"], max(1, math.ceil(lease_until - now)))
    if session.scalar(undone.where(Item.state == "review")) is not None:
        return NoWork("review", MESSAGES["review"])
    any_slot = session.scalar(select(exists().where(Slot.id.is_not(None))))
    reason = "all_done" if any_slot else "empty"
    return NoWork(reason, MESSAGES[reason])


def seconds_held(session: Session, annotator: Annotator, slot_id: str, now: float) -> float:
    """How long this person has had the slot; 0 where they do not have it."""
    slot = session.get(Slot, slot_id, populate_existing=True)
    has_it = slot is not None and slot.annotator_id == annotator.id
    return max(0.0, now - slot.started_at) if has_it else 0.0


# What one person sees of an item


def work_of(session: Session, annotator: Annotator, slot_id: str) -> Work:
    """The slot as this person sees it. Raises NotFound unless they have it, or had it and left a draft."""
    slot = session.get(Slot, slot_id, populate_existing=True)
    draft = slot and session.get(Draft, (slot_id, annotator.id), populate_existing=True)
    is_mine = slot is not None and slot.annotator_id == annotator.id
    if not is_mine and draft is None:
        raise NotFound("there is no such item for you; go on with the next one")
    item = session.get(Item, slot.item_id)
    return Work(
        slot_id=slot_id,
        item_id=item.id,
        messages=session.get(Prompt, item.prompt_id).messages,
        responses=_displayed(session, item, annotator.id),
        lease_until=slot.lease_until if is_mine else 0.0,
        draft=draft.payload if draft else _earlier_draft(session, item.id, annotator.id),
        draft_rev=draft.rev if draft else 0,
    )


def _displayed(session, item: Item, annotator_id: str) -> list[tuple[str, str]]:
    seed = collection_of(session).seed
    return with_texts(session, display_order(seed, item.id, annotator_id, item.response_ids))


def display_order(seed: str, item_id: str, annotator_id: str, response_ids: list[str]) -> list[str]:
    """A permutation that differs by person and by item, and is the same at each reload."""
    return sorted(response_ids, key=lambda response_id: text_sha256(f"{seed} {item_id} {annotator_id} {response_id}"))


def _earlier_draft(session, item_id: str, annotator_id: str) -> dict | None:
    """What this person entered at an earlier turn at the item, which went to somebody else."""
    drafts = select(Draft.payload).join(Slot).where(Slot.item_id == item_id, Draft.annotator_id == annotator_id)
    return session.scalar(drafts.order_by(Draft.updated_at.desc()).limit(1))


def progress(session: Session, annotator: Annotator, now: float) -> Progress:
    """How far this person is."""
    done = select(func.count()).where(Slot.annotator_id == annotator.id, Slot.state == "done")
    has_free_slot = exists().where(Slot.item_id == Item.id, is_free(now))
    free = select(func.count(Item.id)).where(Item.state == "open", Item.kind == "normal")
    free = free.where(has_free_slot, unseen(annotator.id))
    return Progress(session.scalar(done), turns_left(session, annotator.id, session.scalar(free)))


# What a person does with it, short of ranking it


def renew(session: Session, annotator: Annotator, slot_id: str, now: float) -> float:
    """Lends the slot anew, and says until when. Raises Conflict where it is not this person's any more."""
    paused.require_active(session, annotator)
    lease_until = now + settings_of(session).lease_seconds
    change_held(session, annotator, slot_id, lease_until=lease_until)
    return lease_until


def release(session: Session, annotator: Annotator, slot_id: str, now: float) -> None:
    """Gives the slot back for anybody to take. What was entered stays this person's draft."""
    change_held(session, annotator, slot_id, **_FREE)


def skip(session: Session, annotator: Annotator, slot_id: str, reason: str, now: float, request_id: str = "") -> None:
    """Gives the slot back, for others: this person does not get the item again."""
    reason = clean_text(reason, "reason", MAX_REASON, required=True)
    audit.one_writer(session)
    paused.require_active(session, annotator)
    item_id = change_held(session, annotator, slot_id, **_FREE)
    session.add(Skip(item_id=item_id, annotator_id=annotator.id, reason=reason, at=float(now)))
    session.flush()
    _review_if_often(session, item_id)
    audit.append(session, annotator.id, "skip", item_id, after={"reason": reason}, request_id=request_id, now=now)


def flag(
    session: Session,
    annotator: Annotator,
    slot_id: str,
    response_id: str | None,
    reason: str,
    note: str,
    now: float,
    request_id: str = "",
) -> None:
    """Warns the lead of an item, or of one of its responses. The slot stays this person's."""
    reason = clean_text(reason, "reason", MAX_REASON, required=True)
    note = clean_text(note, "note", MAX_NOTE)
    audit.one_writer(session)
    paused.require_active(session, annotator)
    slot = session.get(Slot, slot_id, populate_existing=True)
    if slot is None or slot.annotator_id != annotator.id:
        raise not_held(slot, annotator)
    if response_id is not None and response_id not in session.get(Item, slot.item_id).response_ids:
        raise Refusal("there is no such response in this item", {"response_id": "is not a response of this item"})
    said = {"response_id": response_id, "reason": reason, "note": note}
    session.add(Flag(id=uuid4().hex, item_id=slot.item_id, annotator_id=annotator.id, at=float(now), **said))
    session.flush()
    _review_if_often(session, slot.item_id)
    audit.append(session, annotator.id, "flag", slot.item_id, after=said, request_id=request_id, now=now)


_FREE = {"state": "open", "annotator_id": None, "lease_until": None, "started_at": None}


def change_held(session: Session, annotator: Annotator, slot_id: str, **values) -> str:
    """Changes a slot that this person holds, and says of which item it is. Raises not_held() where they do not."""
    change = update(Slot).where(Slot.id == slot_id, held_by(annotator.id)).values(**values)
    item_id = session.scalar(_as_sql(change.returning(Slot.item_id)))
    if item_id is None:
        raise not_held(session.get(Slot, slot_id, populate_existing=True), annotator)
    return item_id


def not_held(slot: Slot | None, annotator: Annotator) -> Refusal:
    """Why this person cannot do that to the slot."""
    if slot is None:
        return NotFound("there is no such item; go on with the next one")
    if slot.annotator_id == annotator.id:
        return Conflict("you have submitted this item already; your history shows it, and lets you change it")
    return Conflict("this item is not yours any more: its time ran out, or you gave it back; go on with the next one")


def _review_if_often(session, item_id: str) -> None:
    """An item that many people skipped or flagged, or that as many skipped as work here, goes to the lead's list."""
    skipped, flagged = (select(table.annotator_id).where(table.item_id == item_id) for table in (Skip, Flag))
    num_people = session.scalar(select(func.count()).select_from(union(skipped, flagged).subquery()))
    num_skipped = session.scalar(select(func.count()).where(Skip.item_id == item_id))
    working = select(func.count()).where(Annotator.status == "active", Annotator.role == "annotator")
    if num_people >= settings_of(session).skips_to_review or num_skipped >= max(1, session.scalar(working)):
        session.execute(_as_sql(update(Item).where(Item.id == item_id, Item.state == "open").values(state="review")))

"""Items that people skipped or flagged: what the lead is told of them, and decides."""

from sqlalchemy import Subquery, exists, func, select, union_all
from sqlalchemy.orm import Session

from reward.collect.refusals import Conflict, NotFound
from reward.collect.store import audit
from reward.collect.store.collection import with_texts
from reward.collect.store.tables import Annotator, Flag, Item, Prompt, Skip, Slot


def num_complained(session: Session) -> int:
    """How many items somebody skipped or flagged."""
    return session.scalar(select(func.count()).select_from(_complained()))


def review_report(session: Session, limit: int, first: int = 0) -> list[dict]:
    """Items that somebody skipped or flagged, those that wait for the lead first, then the most complained of.

    [{"item_id", "state", "messages", "responses": [(id, text)], "skips": [{"annotator", "reason", "at"}],
    "flags": [{"annotator", "response_id", "reason", "note", "at"}]}], `limit` of them from the number `first` on.
    """
    complained = _complained()
    listed = select(Item, Prompt.messages).join(complained, complained.c.item_id == Item.id).join(Prompt)
    listed = listed.order_by(Item.state != "review", complained.c.num.desc(), Item.id).limit(limit).offset(first)
    found = session.execute(listed).all()
    ids = [item.id for item, _ in found]
    skips, flags = complaints(session, Skip, ids), complaints(session, Flag, ids)
    return [
        {
            "item_id": item.id,
            "state": item.state,
            "messages": messages,
            "responses": with_texts(session, item.response_ids),
            "skips": [_told(skip, handle) for skip, handle in skips.get(item.id, [])],
            "flags": [
                _told(flag, handle) | {"response_id": flag.response_id, "note": flag.note}
                for flag, handle in flags.get(item.id, [])
            ],
        }
        for item, messages in found
    ]


def _complained() -> Subquery:
    """(item_id, num): how often each item was skipped or flagged, where it was."""
    every = union_all(select(Skip.item_id), select(Flag.item_id)).subquery()
    return select(every.c.item_id, func.count().label("num")).group_by(every.c.item_id).subquery()


def complaints(session: Session, table: type[Skip] | type[Flag], item_ids: list[str]) -> dict[str, list[tuple]]:
    """Item id -> [(skip or flag, who)], the oldest first, of these items."""
    found = select(table, Annotator.handle).join(Annotator, table.annotator_id == Annotator.id)
    rows = {}
    for complaint, handle in session.execute(found.where(table.item_id.in_(item_ids)).order_by(table.at)):
        rows.setdefault(complaint.item_id, []).append((complaint, handle))
    return rows


def _told(complaint: Skip | Flag, handle: str) -> dict:
    return {"annotator": handle, "reason": complaint.reason, "at": complaint.at}


def reopen(session: Session, item_id: str, actor: str, now: float) -> str:
    """Puts an item back into the queue, for those who did not skip it; its new state. The next skip brings it back."""
    undone = select(exists().where(Slot.item_id == item_id, Slot.state != "done"))
    return _decide(session, item_id, "open" if session.scalar(undone) else "done", ("review", "cancelled"), actor, now)


def cancel(session: Session, item_id: str, actor: str, now: float) -> str:
    """Takes an item out of queue and exports. What people entered stays, and counts again when it is reopened."""
    return _decide(session, item_id, "cancelled", ("open", "review", "done"), actor, now)


def _decide(session, item_id, state, allowed, actor, now):
    audit.one_writer(session)
    item = session.get(Item, item_id, populate_existing=True)
    if item is None:
        raise NotFound(f"item {item_id!r} does not exist")
    if item.state not in allowed:
        raise Conflict(f"the item is {item.state}; somebody decided before you. Reload the page", {"state": item.state})
    before, item.state = item.state, state
    audit.append(session, actor, "review item", item_id, {"state": before}, {"state": state}, now=now)
    return state

"""What the lead decides about an item that people skipped or flagged."""

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from reward.collect import audit
from reward.collect.refusals import Conflict, NotFound
from reward.collect.tables import Item, Slot


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

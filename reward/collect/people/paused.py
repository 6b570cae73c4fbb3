"""A paused account stores nothing: no ranking, draft, skip or report, and no key for scripts."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect.refusals import Forbidden
from reward.collect.store.tables import Annotator

MESSAGE = "Your work here is paused. Ask whoever leads this collection."


def require_active(session: Session, person: Annotator) -> None:
    """Raises Forbidden where the account is paused now: the row that the request began with may be older."""
    status = session.scalar(select(Annotator.status).where(Annotator.id == person.id))
    if status != "active":
        raise Forbidden(f"{MESSAGE} Nothing was stored.")

"""What nearly every request looks up: the collection, its settings, its guidelines, the texts of answers."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect.store.settings import Settings
from reward.collect.store.tables import Collection, Guidelines, Response
from rlhf.errors import UserError


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

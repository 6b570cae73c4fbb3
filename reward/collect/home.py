"""Where a collection lives: its folder, the database in it or by URL, and how it is made and changed."""

import secrets
from dataclasses import replace
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from reward.collect.defaults import LOCAL
from reward.collect.people import accounts
from reward.collect.store import audit, private
from reward.collect.store.collection import collection_of, guidelines_in_force
from reward.collect.store.database import Database
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Collection, Guidelines
from rlhf.errors import UserError
from rlhf.files import writing
from rlhf.hashing import text_sha256
from rlhf.locks import locked

ACTOR = "command line"  # as the audit names it
FIRST_INVITE_DAYS = 7
PATIENCE = 20  # seconds that a command waits for another one's end
FOR_NEW_ITEMS = ("overlap", "agreement_share", "agreement_overlap")  # slots are made with their item


def one_at_a_time(folder: Path):
    """A context in which no other process makes or fills the collection. Raises UserError where one takes long."""
    return locked(folder, "try again", PATIENCE, private.FOLDER)


def open_database(folder: Path, url: str | None) -> Database:
    """The database at the URL, or collect.db in the folder. Nothing is read or made yet."""
    return Database(url or URL.create("sqlite", database=str(folder / "collect.db")))


def open_collection(folder: Path, url: str | None) -> Database:
    """The database of a collection that is there, with this release's tables. Raises UserError where there is none."""
    database = open_database(folder, url)
    if database.is_sqlite and not Path(database.url.database).is_file():  # SQLite would make an empty one
        raise UserError(f"{database.shown()}: no collection is there; make one with python -m reward.collect init")
    database.require_schema()
    with database.read() as session:
        require_collection(session)
        audit.require_key(session)
    return database


def files_of(database: Database, folder: Path) -> list[Path]:
    """Where what people said, and the keys of accounts, lie on this machine."""
    names = [f"{database.url.database}{end}" for end in ("", "-wal", "-shm", "-journal")] if database.is_sqlite else []
    return [*map(Path, names), folder / "versions", folder / "backups"]


def require_collection(session: Session) -> None:
    """Raises UserError where there is none. Looks at none of its values: `verify` names those that cannot be read."""
    if session.scalar(select(Collection.id)) is None:
        collection_of(session)


def is_there(database: Database) -> bool:
    """Whether a collection was made in this database, by this release or another one. Tables alone are none yet."""
    if database.is_sqlite and not Path(database.url.database).is_file():
        return False
    if (revision := database.revision()) is None:
        return False
    database.require_known(revision)
    with database.read() as session:
        return session.scalar(select(func.count(Collection.id))) > 0


def create_collection(database: Database, name: str, guidelines: str, settings: Settings, now: float) -> None:
    """Makes the tables and the collection in an empty database."""
    if database.is_sqlite:
        folder = Path(database.url.database).parent
        with writing(folder, private.ELSEWHERE):
            private.make_folder(folder)
    database.upgrade()
    with database.write() as session:
        row = Collection(
            id=1,
            name=name,
            settings=settings.as_dict(),
            seed=secrets.token_hex(16),
            pseudonym_key=secrets.token_hex(16),
            created_at=now,
        )
        session.add(row)
        session.add(Guidelines(version=1, text=guidelines, created_at=now))
        audit.append(session, ACTOR, "init", "collection", after={"name": name, **settings.as_dict()}, now=now)


def change_collection(
    session: Session, name: str | None, guidelines: str | None, settings: dict, now: float
) -> list[str]:
    """Changes what is given, and says what changed. The settings of items that are queued stay with them."""
    collection = collection_of(session)
    settings = replace(Settings.from_dict(collection.settings), **settings).as_dict()
    old, new = {"name": collection.name, **collection.settings}, {"name": name or collection.name, **settings}
    before = {key: old.get(key) for key in new if new[key] != old.get(key)}
    after = {key: new[key] for key in before}
    if before:
        collection.name, collection.settings = new["name"], settings
        audit.append(session, ACTOR, "change settings", "collection", before, after, now=now)
    lines = [f"{key}: {before[key]} -> {after[key]}" for key in before]
    if any(new[key] != old.get(key) for key in FOR_NEW_ITEMS):
        lines.append("  for items that come in from now on; those that are queued keep the number of people they have")
    return lines + add_guidelines(session, guidelines, now)


def add_guidelines(session: Session, text: str | None, now: float, actor: str = ACTOR) -> list[str]:
    """A new version of the guidelines, where the text is not that of the newest one."""
    newest = guidelines_in_force(session)
    if text is None or newest.text == text:
        return []
    version = newest.version + 1
    session.add(Guidelines(version=version, text=text, created_at=now))
    audit.append(session, actor, "guidelines", str(version), after={"sha256": text_sha256(text)}, now=now)
    return [f"guidelines: version {version}"]


def origin_of(session: Session) -> str:
    """Where people reach the page: where it was served last, or what `init` was told."""
    return collection_of(session).origin or LOCAL


def first_lead_link(session: Session, now: float) -> str | None:
    """A one-time link that makes the first account, a lead's; None where there is an account. It ends earlier ones."""
    if accounts.has_account(session):
        return None
    accounts.end_lead_invites(session, ACTOR, now)
    return invite_link(session, "lead", FIRST_INVITE_DAYS, now)


def invite_link(session: Session, role: str, days: float, now: float, origin: str | None = None) -> str:
    """A link that makes one account. origin: where people reach the page, if not where it was served last."""
    return _link(session, accounts.create_invite(session, role, days, ACTOR, now), origin)


def reset_link(session: Session, handle: str, days: float, now: float, origin: str | None = None) -> str:
    """A link by which somebody who has an account chooses a new password."""
    person = accounts.person_named(session, handle)
    return _link(session, accounts.create_reset(session, person, days, ACTOR, now), origin)


def _link(session: Session, secret: str, origin: str | None) -> str:
    return f"{origin or origin_of(session)}/invite/{secret}"


def fingerprint(session: Session) -> str:
    """Tells this collection from others, without telling anything about it."""
    return text_sha256(f"fingerprint {collection_of(session).seed}")[:16]

"""Signed-in browsers. Only hashes of their secrets are stored."""

import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from reward.collect.people import lockout, passwords
from reward.collect.refusals import NotFound, NotSignedIn
from reward.collect.store import audit, tables
from reward.collect.store.collection import collection_of
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotator
from rlhf.hashing import text_sha256

IDLE_SECONDS = 8 * 3600  # after which a browser must sign in again
MOST_SECONDS = 24 * 3600  # after which it must however busy it was
SEEN_EVERY = 60  # seconds between notes that a session is alive: not every page view is a write
SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Mac OS", "Linux")  # the first that is named: Android names Linux
BROWSERS = {"Edg": "Edge", "OPR": "Opera", "Firefox": "Firefox", "Chrome": "Chrome", "Safari": "Safari"}  # likewise


@dataclass(frozen=True)
class Client:
    """What a browser says of itself."""

    address: str = ""
    user_agent: str = ""
    known: str | None = None  # the cookie that tells a known browser

    def name(self) -> str:
        """As a person would name it: "Firefox on Linux"."""
        browser = next((name for mark, name in BROWSERS.items() if f"{mark}/" in self.user_agent), "")
        system = next((name for name in SYSTEMS if name in self.user_agent), "")
        return " on ".join(filter(None, [browser, system])) or "".join(filter(str.isprintable, self.user_agent))[:40]


def sign_in(database: Database, handle: str, password: str, client: Client, now: float) -> str:
    """The secret of a new session, for the cookie. Raises NotSignedIn, or TooMany after repeated failures.

    Takes the database, not an open session: an attempt counts from before the password is looked at, so that neither
    its refusal nor a hundred attempts at once undo the count, and no lock is held while the password is hashed.
    """
    handle = handle.strip().lower()
    with database.read() as session:
        person = session.scalar(select(Annotator).where(Annotator.handle == handle))
        browser = client.known if person and _knows(session, person, client.known) else None
    keys = lockout.keys_of(handle, client.address, browser)
    attempt = lockout.count_attempt(database, keys, now)
    if not passwords.is_right(person.password_hash if person else "", password):
        raise NotSignedIn("Handle or password is wrong.")
    with database.write() as session:
        lockout.forget(session, keys, attempt)
        return open_session(session, person.id, now, client)


def known_browser(session: Session, person: Annotator) -> str:
    """What a browser keeps to be known as one of this person's. It opens nothing, and ends with the password."""
    nonce = secrets.token_urlsafe(16)
    return f"{nonce}.{_seal(session, person, nonce)}"


def _knows(session: Session, person: Annotator, known: str | None) -> bool:
    nonce, _, seal = (known or "").partition(".")
    return hmac.compare_digest(seal.encode(), _seal(session, person, nonce).encode())


def _seal(session: Session, person: Annotator, nonce: str) -> str:
    said = f"known browser {person.id} {nonce} {person.password_hash}"
    return hmac.new(collection_of(session).pseudonym_key.encode(), said.encode(), "sha256").hexdigest()


def open_session(session: Session, annotator_id: str, now: float, client: Client | None = None) -> str:
    """The secret of a new session; sessions that ended are removed."""
    session.execute(delete(tables.Session).where(_has_ended(now)))
    secret, client = secrets.token_urlsafe(32), client or Client()
    row = tables.Session(
        sha256=text_sha256(secret),
        annotator_id=annotator_id,
        csrf_token=secrets.token_urlsafe(32),
        created_at=now,
        seen_at=now,
        address=client.address[:100],
        browser=client.name(),
    )
    session.add(row)
    return secret


def _has_ended(now: float):
    return or_(tables.Session.seen_at <= now - IDLE_SECONDS, tables.Session.created_at <= now - MOST_SECONDS)


def signed_in(session: Session, secret: str, now: float) -> tuple[Annotator, tables.Session] | None:
    """Whose browser holds this secret, unless it was idle for too long or signed in too long ago."""
    of_secret = tables.Session.sha256 == text_sha256(secret)
    found = session.scalar(select(tables.Session).where(of_secret, ~_has_ended(now)))
    return found and (session.get_one(Annotator, found.annotator_id), found)


def mark_seen(session: Session, signed: tables.Session, now: float) -> None:
    session.execute(update(tables.Session).where(tables.Session.sha256 == signed.sha256).values(seen_at=now))


def sign_out(session: Session, secret: str) -> None:
    session.execute(delete(tables.Session).where(tables.Session.sha256 == text_sha256(secret)))


def sessions_of(session: Session, annotator_id: str, now: float) -> list[tables.Session]:
    """The browsers in which this person is signed in, the one that was seen last first."""
    own = select(tables.Session).where(tables.Session.annotator_id == annotator_id, ~_has_ended(now))
    return list(session.scalars(own.order_by(tables.Session.seen_at.desc(), tables.Session.sha256)))


def end_session(session: Session, sha256: str, actor: str, now: float, owner: str | None = None) -> None:
    """Signs a browser out. owner: whose it must be. Raises NotFound."""
    found = session.get(tables.Session, sha256)
    if found is None or owner not in (None, found.annotator_id):
        raise NotFound("there is no such browser; it may have been signed out meanwhile")
    session.delete(found)
    audit.append(session, actor, "end session", found.annotator_id, before=_told(found), now=now)


def end_sessions(session: Session, annotator_id: str, actor: str, now: float, but: str | None = None) -> int:
    """Signs all of a person's browsers out, but perhaps one. Returns how many they were."""
    own = select(tables.Session).where(tables.Session.annotator_id == annotator_id)
    ended = [one for one in session.scalars(own) if one.sha256 != but]
    for one in ended:
        session.delete(one)
    if ended:
        before = {"sessions": [_told(one) for one in ended]}
        audit.append(session, actor, "end sessions", annotator_id, before=before, now=now)
    return len(ended)


def _told(one: tables.Session) -> dict:
    return {"created_at": one.created_at, "browser": one.browser}

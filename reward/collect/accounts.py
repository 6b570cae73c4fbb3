"""Who may do what: invites, passwords, signed-in browsers, keys for scripts. Only hashes of secrets are stored.

`actor` is what the audit shall name: an annotator's id, or "command line".
"""

import functools
import hashlib
import math
import re
import secrets
from uuid import uuid4

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from reward.collect import audit, tables
from reward.collect.database import Database
from reward.collect.refusals import Forbidden, NotFound, NotSignedIn, Refusal, TooMany
from reward.collect.tables import Annotator, Invite, SignInFailure, Token

ROLES = ("annotator", "lead")
SCOPES = {"annotate": ROLES, "read": ("lead",), "export": ("lead",)}  # of a token -> roles that may have it
HANDLE = re.compile(r"[a-z0-9][a-z0-9._-]{1,31}")
MIN_PASSWORD, MAX_PASSWORD = 10, 1000
IDLE_SECONDS = 8 * 3600  # after which a browser must sign in again
SEEN_EVERY = 60  # seconds between notes that a session is alive: not every page view is a write
FAILURE_SECONDS = 15 * 60
MAX_FAILURES = {"handle": 10, "address": 50}  # within FAILURE_SECONDS; a team may share an address
MAX_INVITE_DAYS, MAX_TOKEN_DAYS = 90, 366


def create_invite(session: Session, role: str, days: float, actor: str, now: float) -> str:
    """The secret of a link that makes one account of this role."""
    if role not in ROLES:
        raise Refusal(f"role {role!r} is unknown; choose one of {', '.join(ROLES)}", {"role": "unknown"})
    return _add_invite(session, Invite(role=role), days, actor, now)


def create_reset(session: Session, person: Annotator, days: float, actor: str, now: float) -> str:
    """The secret of a link by which a person who has an account chooses a new password."""
    return _add_invite(session, Invite(role=person.role, annotator_id=person.id), days, actor, now)


def _add_invite(session: Session, invite: Invite, days: float, actor: str, now: float) -> str:
    _require_days(days, MAX_INVITE_DAYS)
    secret = secrets.token_urlsafe(32)
    invite.sha256, invite.created_at, invite.expires_at = _sha256(secret), now, now + days * 86400
    session.add(invite)
    after = {"role": invite.role, "for": invite.annotator_id, "expires_at": invite.expires_at}
    audit.append(session, actor, "invite", invite.sha256, after=after, now=now)
    return secret


def usable_invite(session: Session, secret: str, now: float) -> Invite:
    """The invite behind a link. Raises NotFound for a link that is unknown, used or expired."""
    invite = session.get(Invite, _sha256(secret))
    if invite is None:
        raise NotFound("This invite link is not known here. Copy the whole link, or ask the lead for a new one.")
    if invite.used_at is not None:
        raise NotFound("This invite link was already used. Sign in, or ask the lead for a new link.")
    if now >= invite.expires_at:
        raise NotFound("This invite link has expired. Ask the lead for a new one.")
    return invite


def accept_invite(session: Session, secret: str, handle: str, password: str, now: float) -> Annotator:
    """The new account; that of the link's own person, with the new password, where it is for one who has an account.

    The link stays unused when handle or password are refused. The first lead's ends the other links for leads: they
    were made before there was anybody to ask.
    """
    audit.one_writer(session)  # else two could be the first at the same moment
    invite = usable_invite(session, secret, now)
    if invite.annotator_id is not None:
        return _choose_password(session, secret, session.get_one(Annotator, invite.annotator_id), password, now)
    role = invite.role
    is_first_lead = role == "lead" and not _has_lead(session)
    handle = normal_handle(handle)
    _require_handle(handle)
    _require_password(password, handle)
    person = Annotator(
        id=uuid4().hex,
        handle=handle,
        role=role,
        password_hash=_hasher().hash(password),
        status="active",
        created_at=now,
    )
    _add_account(session, person)
    _use_up(session, secret, person, now)
    if is_first_lead:
        end_lead_invites(session, person.id, now)
    audit.append(session, person.id, "accept_invite", person.id, after={"handle": handle, "role": role}, now=now)
    return person


def _choose_password(session: Session, secret: str, person: Annotator, password: str, now: float) -> Annotator:
    """Whoever was signed in with the old password is signed out."""
    _require_password(password, person.handle)
    person.password_hash = _hasher().hash(password)
    session.execute(delete(tables.Session).where(tables.Session.annotator_id == person.id))
    _use_up(session, secret, person, now)
    audit.append(session, person.id, "choose password", person.id, now=now)
    return person


def end_lead_invites(session: Session, actor: str, now: float) -> None:
    """No link that nobody has used makes a lead any more."""
    unused = select(Invite).where(Invite.role == "lead", Invite.used_at.is_(None), Invite.expires_at > now)
    for invite in session.scalars(unused):
        invite.expires_at = now
        audit.append(session, actor, "end invite", invite.sha256, now=now)


def _has_lead(session: Session) -> bool:
    leads = select(func.count()).where(Annotator.role == "lead", Annotator.password_hash != "")
    return session.scalar(leads) > 0


def normal_handle(handle: str) -> str:
    """Alice and alice are one person."""
    return handle.strip().lower()


def _require_handle(handle: str) -> None:
    if not HANDLE.fullmatch(handle):
        rule = "2 to 32 of a-z, 0-9, dot, hyphen and underscore, beginning with a letter or digit"
        raise Refusal(f"handle {handle[:40]!r} cannot be used; choose {rule}", {"handle": rule})


def _require_password(password: str, handle: str) -> None:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        rule = f"{MIN_PASSWORD} to {MAX_PASSWORD} characters"
        raise Refusal(f"the password has {len(password)} characters; it must have {rule}", {"password": rule})
    if normal_handle(password) == handle:
        rule = "something else than the handle"
        raise Refusal(f"the password is the handle; choose {rule}", {"password": rule})


def _require_days(days: float, most: int) -> None:
    if not 0 < days <= most:
        raise Refusal(f"days is {days!r}; it must be more than 0 and at most {most}", {"days": f"at most {most}"})


def _add_account(session: Session, person: Annotator) -> None:
    session.add(person)
    try:
        session.flush()
    except IntegrityError:
        raise Refusal(f"handle {person.handle!r} is taken; choose another", {"handle": "taken"}) from None


def _use_up(session: Session, secret: str, person: Annotator, now: float) -> None:
    unused = update(Invite).where(Invite.sha256 == _sha256(secret), Invite.used_at.is_(None))
    if session.execute(unused.values(used_at=now, annotator_id=person.id)).rowcount != 1:
        raise NotFound("This invite link was already used. Sign in, or ask the lead for a new link.")


def person_named(session: Session, handle: str) -> Annotator:
    """Raises NotFound where nobody has an account of this name."""
    person = session.scalar(select(Annotator).where(Annotator.handle == normal_handle(handle)))
    if person is None:
        raise NotFound(f"nobody here is called {handle!r}; python -m reward.collect invite makes a link for them")
    return person


# Signed-in browsers


def sign_in(database: Database, handle: str, password: str, address: str, now: float) -> str:
    """The secret of a new session, for the cookie. Raises NotSignedIn, or TooMany after repeated failures.

    Takes the database, not an open session: an attempt counts from before the password is looked at, so that neither
    its refusal nor a hundred attempts at once undo the count, and no lock is held while the password is hashed.
    """
    handle = normal_handle(handle)
    nobody_s_hash = _nobody_s_hash()
    keys = {"handle": f"handle:{_sha256(handle)}", "address": f"address:{address}"}
    attempt = _count_attempt(database, keys, now)
    with database.read() as session:
        person = session.scalar(select(Annotator).where(Annotator.handle == handle))
    known_hash = person.password_hash if person else ""
    is_right = _is_password(known_hash or nobody_s_hash, password)  # the same work for an unknown handle
    if not (is_right and known_hash):
        raise NotSignedIn("Handle or password is wrong.")
    with database.write() as session:
        session.execute(delete(SignInFailure).where(SignInFailure.key == keys["handle"]))
        session.execute(delete(SignInFailure).where(SignInFailure.id.in_(attempt)))
        return open_session(session, person.id, now)


def _count_attempt(database: Database, keys: dict[str, str], now: float) -> list[str]:
    """Ids of the rows that count this attempt as failed. Raises TooMany where there were too many before."""
    with database.write() as session:
        audit.one_writer(session)  # else attempts at the same moment would not see each other
        session.execute(delete(SignInFailure).where(SignInFailure.at <= now - FAILURE_SECONDS))
        for kind, key in keys.items():
            _require_few(session, key, MAX_FAILURES[kind], now)
        rows = [SignInFailure(id=uuid4().hex, key=key, at=now) for key in keys.values()]
        session.add_all(rows)
        return [row.id for row in rows]


def _require_few(session: Session, key: str, most: int, now: float) -> None:
    count, first = session.execute(
        select(func.count(), func.min(SignInFailure.at)).where(SignInFailure.key == key)
    ).one()
    if count >= most:
        wait = max(1, math.ceil(first + FAILURE_SECONDS - now))
        raise TooMany(f"Too many failed attempts to sign in. Wait {math.ceil(wait / 60)} minutes and try again.", wait)


def open_session(session: Session, annotator_id: str, now: float) -> str:
    """The secret of a new session; sessions that ended are removed."""
    session.execute(delete(tables.Session).where(tables.Session.seen_at <= now - IDLE_SECONDS))
    secret = secrets.token_urlsafe(32)
    times = {"created_at": now, "seen_at": now}
    csrf_token = secrets.token_urlsafe(32)
    session.add(tables.Session(sha256=_sha256(secret), annotator_id=annotator_id, csrf_token=csrf_token, **times))
    return secret


def signed_in(session: Session, secret: str, now: float) -> tuple[Annotator, tables.Session] | None:
    """Whose browser holds this secret, unless it was idle for too long."""
    found = session.get(tables.Session, _sha256(secret))
    if found is None or now - found.seen_at >= IDLE_SECONDS:
        return None
    return session.get_one(Annotator, found.annotator_id), found


def mark_seen(session: Session, signed: tables.Session, now: float) -> None:
    session.execute(update(tables.Session).where(tables.Session.sha256 == signed.sha256).values(seen_at=now))


def sign_out(session: Session, secret: str) -> None:
    session.execute(delete(tables.Session).where(tables.Session.sha256 == _sha256(secret)))


# Keys for scripts


def create_token(
    session: Session, person: Annotator, scopes: list[str], days: float, now: float, actor: str | None = None
) -> tuple[str, Token]:
    """(secret, its row). The secret is shown once. A scope opens no more than its holder's role does.

    actor: who makes it, if not its holder.
    """
    _require_scopes(scopes, person)
    _require_days(days, MAX_TOKEN_DAYS)
    secret = f"collect_{secrets.token_urlsafe(32)}"
    token = Token(
        id=uuid4().hex,
        annotator_id=person.id,
        sha256=_sha256(secret),
        prefix=secret[:14],
        scopes=sorted(set(scopes)),
        created_at=now,
        expires_at=now + days * 86400,
    )
    session.add(token)
    after = {"annotator": person.id, "scopes": token.scopes, "expires_at": token.expires_at}
    audit.append(session, actor or person.id, "create_token", token.id, after=after, now=now)
    return secret, token


def _require_scopes(scopes: list[str], person: Annotator) -> None:
    if not scopes:
        raise Refusal(f"scopes is empty; choose from {', '.join(SCOPES)}", {"scopes": "empty"})
    for scope in scopes:
        if scope not in SCOPES:
            raise Refusal(f"scope {scope!r} is unknown; choose from {', '.join(SCOPES)}", {"scopes": "unknown"})
        if person.role not in SCOPES[scope]:
            raise Forbidden(f"scope {scope!r} is for a lead; {person.handle} is {person.role}")


def token_holder(session: Session, secret: str, scope: str, now: float) -> Annotator:
    """Whose key this is. Raises NotSignedIn for one that opens nothing, Forbidden for one that does not open this."""
    token = session.scalar(select(Token).where(Token.sha256 == _sha256(secret)))
    if token is None or token.revoked_at is not None or now >= token.expires_at:
        raise NotSignedIn("the token is unknown, expired or revoked; make a new one")
    if scope not in token.scopes:
        raise Forbidden(f"token {token.prefix}... lacks the scope {scope!r}; it has {', '.join(token.scopes)}")
    person = session.get_one(Annotator, token.annotator_id)
    if person.status != "active":
        raise Forbidden(f"the account of token {token.prefix}... is {person.status}; ask the lead")
    return person


def revoke_token(session: Session, token_id: str, person: Annotator, now: float) -> None:
    """Ends a token: one's own, or as a lead anybody's."""
    token = session.get(Token, token_id)
    if token is None or (token.annotator_id != person.id and person.role != "lead"):
        raise NotFound(f"token {token_id!r} does not exist")
    if token.revoked_at is None:
        token.revoked_at = now
        audit.append(session, person.id, "revoke_token", token.id, now=now)


def set_status(session: Session, annotator_id: str, status: str, actor: str, now: float) -> None:
    """Pauses somebody, who then gets no more work, or lets them go on."""
    if status not in ("active", "paused"):
        raise Refusal(f"status {status!r} is unknown; choose active or paused", {"status": "unknown"})
    if annotator_id == actor:
        raise Refusal("your own account cannot be paused; ask another lead")
    person = session.get(Annotator, annotator_id)
    if person is None:
        raise NotFound(f"annotator {annotator_id!r} does not exist")
    before, person.status = person.status, status
    changed = {"before": {"status": before}, "after": {"status": status}}
    audit.append(session, actor, "set_status", annotator_id, **changed, now=now)


def has_account(session: Session) -> bool:
    """Whether anybody can sign in at all."""
    return session.scalar(select(func.count()).where(Annotator.password_hash != "")) > 0


# Secrets


@functools.cache
def _hasher() -> PasswordHasher:
    """argon2id with the least parameters of the OWASP password storage cheat sheet: 19 MiB, 2 passes, 1 lane."""
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@functools.cache
def _nobody_s_hash() -> str:
    return _hasher().hash(secrets.token_urlsafe(32))


def _is_password(password_hash: str, password: str) -> bool:
    try:
        return _hasher().verify(password_hash, password[:MAX_PASSWORD])
    except VerifyMismatchError:
        return False


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

"""Who may do what: accounts, the links that make them, and what becomes of them. Only hashes of secrets are stored.

`actor` is what the audit shall name: an annotator's id, or "command line".
"""

import re
import secrets
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from reward.collect.people import passwords, sessions, tokens
from reward.collect.people.tokens import require_days
from reward.collect.refusals import NotFound, Refusal
from reward.collect.store import audit
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotator, Invite
from rlhf.hashing import text_sha256

ROLES, STATUSES = ("annotator", "lead"), ("active", "paused")
HANDLE = re.compile(r"[a-z0-9][a-z0-9._-]{1,31}")
MAX_INVITE_DAYS = 90


def create_invite(session: Session, role: str, days: float, actor: str, now: float) -> str:
    """The secret of a link that makes one account of this role."""
    if role not in ROLES:
        raise Refusal(f"role {role!r} is unknown; choose one of {', '.join(ROLES)}", {"role": "unknown"})
    return _add_invite(session, Invite(role=role), days, actor, now)


def create_reset(session: Session, person: Annotator, days: float, actor: str, now: float) -> str:
    """The secret of a link by which a person who has an account chooses a new password."""
    return _add_invite(session, Invite(role=person.role, annotator_id=person.id), days, actor, now)


def _add_invite(session: Session, invite: Invite, days: float, actor: str, now: float) -> str:
    require_days(days, MAX_INVITE_DAYS)
    secret = secrets.token_urlsafe(32)
    invite.sha256, invite.created_at, invite.expires_at = text_sha256(secret), now, now + days * 86400
    session.add(invite)
    after = {"role": invite.role, "for": invite.annotator_id, "expires_at": invite.expires_at}
    audit.append(session, actor, "invite", invite.sha256, after=after, now=now)
    return secret


def usable_invite(session: Session, secret: str, now: float) -> Invite:
    """The invite behind a link. Raises NotFound for a link that is unknown, used or expired."""
    invite = session.get(Invite, text_sha256(secret))
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
    passwords.require_password(password, handle)
    person = Annotator(
        id=uuid4().hex,
        handle=handle,
        role=role,
        password_hash=passwords.hash_of(password),
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
    passwords.require_password(password, person.handle)
    _use_up(session, secret, person, now)
    _set_password(session, person, password, now)
    return person


def change_password(
    database: Database, person: Annotator, present: str, password: str, client: sessions.Client, now: float
) -> str:
    """The secret of a new session; those of the former password are over. Raises what sign_in() does."""
    passwords.require_password(password, person.handle)
    sessions.sign_in(database, person.handle, present, client, now)
    with database.write() as session:
        _set_password(session, session.get_one(Annotator, person.id), password, now)
        return sessions.open_session(session, person.id, now, client)


def _set_password(session: Session, person: Annotator, password: str, now: float) -> None:
    """Nothing that was opened with the old password stays open: no browser, no token, no other link to choose one."""
    password_hash = passwords.hash_of(password)
    audit.one_writer(session)
    person.password_hash = password_hash
    audit.append(session, person.id, "choose password", person.id, now=now)
    sessions.end_sessions(session, person.id, person.id, now)
    tokens.revoke_tokens(session, person.id, person.id, now)
    for invite in open_invites(session, now, person.id):
        end_invite(session, invite.sha256, person.id, now)


def open_invites(session: Session, now: float, annotator_id: str | None = None) -> list[Invite]:
    """Links that can be used, the newest first; of one person those by which they choose a new password."""
    unused = select(Invite).where(Invite.used_at.is_(None), Invite.expires_at > now)
    if annotator_id is not None:
        unused = unused.where(Invite.annotator_id == annotator_id)
    return list(session.scalars(unused.order_by(Invite.created_at.desc(), Invite.sha256)))


def end_invite(session: Session, sha256: str, actor: str, now: float) -> None:
    """The link cannot be used any more. Raises NotFound where it cannot anyway."""
    audit.one_writer(session)
    invite = session.get(Invite, sha256, populate_existing=True)
    if invite is None or invite.used_at is not None or invite.expires_at <= now:
        raise NotFound("there is no such invite that can be used; it may have been used or ended meanwhile")
    invite.expires_at = now
    audit.append(session, actor, "end invite", invite.sha256, now=now)


def end_lead_invites(session: Session, actor: str, now: float) -> None:
    """No link that nobody has used makes a lead any more."""
    for invite in open_invites(session, now):
        if invite.role == "lead":
            end_invite(session, invite.sha256, actor, now)


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


def _add_account(session: Session, person: Annotator) -> None:
    session.add(person)
    try:
        session.flush()
    except IntegrityError:
        raise Refusal(f"handle {person.handle!r} is taken; choose another", {"handle": "taken"}) from None


def _use_up(session: Session, secret: str, person: Annotator, now: float) -> None:
    unused = update(Invite).where(Invite.sha256 == text_sha256(secret), Invite.used_at.is_(None))
    if session.execute(unused.values(used_at=now, annotator_id=person.id)).rowcount != 1:
        raise NotFound("This invite link was already used. Sign in, or ask the lead for a new link.")


def person_named(session: Session, handle: str) -> Annotator:
    """Raises NotFound where nobody has an account of this name."""
    person = session.scalar(select(Annotator).where(Annotator.handle == normal_handle(handle)))
    if person is None:
        raise NotFound(f"nobody here is called {handle!r}; python -m reward.collect invite makes a link for them")
    return person


def has_account(session: Session) -> bool:
    """Whether anybody can sign in at all."""
    return session.scalar(select(func.count()).where(Annotator.password_hash != "")) > 0


# What becomes of an account


@dataclass(frozen=True)
class Account:
    """One line of the list of all accounts."""

    person: Annotator
    num_browsers: int  # that are signed in
    num_tokens: int
    seen_at: float | None  # when a browser that is signed in was there last


def all_accounts(session: Session, now: float) -> list[Account]:
    """By handle."""
    return [_account(session, person, now) for person in session.scalars(select(Annotator).order_by(Annotator.handle))]


def _account(session: Session, person: Annotator, now: float) -> Account:
    browsers = sessions.sessions_of(session, person.id, now)
    seen_at = browsers[0].seen_at if browsers else None
    return Account(person, len(browsers), len(tokens.tokens_of(session, person.id, now)), seen_at)


def set_status(session: Session, annotator_id: str, status: str, actor: str, now: float) -> None:
    """Pauses somebody, who then gets no work and stores nothing, or lets them go on."""
    _change(session, annotator_id, "status", status, STATUSES, actor, now)


def set_role(session: Session, annotator_id: str, role: str, actor: str, now: float) -> None:
    """Makes somebody a lead or an annotator. Tokens that open more than an annotator may end with the former role."""
    _change(session, annotator_id, "role", role, ROLES, actor, now)
    tokens.revoke_tokens(session, annotator_id, actor, now, role)


def _change(
    session: Session, annotator_id: str, name: str, value: str, allowed: tuple[str, ...], actor: str, now: float
) -> None:
    audit.one_writer(session)  # else two leads could pause each other at the same moment
    if value not in allowed:
        raise Refusal(f"{name} {value!r} is unknown; choose {' or '.join(allowed)}", {name: "unknown"})
    if annotator_id == actor:
        raise Refusal("your own account cannot be paused or get another role; ask another lead")
    person = require_account(session, annotator_id)
    before = getattr(person, name)
    if before == value:
        return
    _require_other_lead(session, person)
    setattr(person, name, value)
    audit.append(session, actor, f"set_{name}", annotator_id, {name: before}, {name: value}, now=now)


def require_account(session: Session, annotator_id: str) -> Annotator:
    """The account as the database has it now. Raises NotFound."""
    person = session.get(Annotator, annotator_id, populate_existing=True)
    if person is None:
        raise NotFound(f"annotator {annotator_id!r} does not exist")
    return person


def _require_other_lead(session: Session, person: Annotator) -> None:
    """Raises Refusal where a change would take the last one who can lead."""
    if person.role != "lead" or person.status != "active":
        return
    others = select(func.count()).where(Annotator.role == "lead", Annotator.status == "active")
    if session.scalar(others.where(Annotator.password_hash != "", Annotator.id != person.id)) == 0:
        raise Refusal(f"{person.handle} is the last active lead; make somebody else a lead first")

"""Keys for scripts. Only hashes of them are stored."""

import secrets
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect.people.paused import require_active
from reward.collect.refusals import Forbidden, NotFound, NotSignedIn, Refusal
from reward.collect.store import audit
from reward.collect.store.tables import Annotator, Token
from rlhf.hashing import text_sha256

SCOPES = {"annotate": ("annotator", "lead"), "read": ("lead",), "export": ("lead",)}  # -> roles that may have it
MAX_TOKEN_DAYS = 366


def create_token(
    session: Session, person: Annotator, scopes: list[str], days: float, now: float, actor: str | None = None
) -> tuple[str, Token]:
    """(secret, its row). The secret is shown once. A scope opens no more than its holder's role does.

    actor: who makes it, if not its holder.
    """
    require_active(session, person)
    _require_scopes(scopes, person)
    require_days(days, MAX_TOKEN_DAYS)
    secret = f"collect_{secrets.token_urlsafe(32)}"
    token = Token(
        id=uuid4().hex,
        annotator_id=person.id,
        sha256=text_sha256(secret),
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
    token = session.scalar(select(Token).where(Token.sha256 == text_sha256(secret)))
    if token is None or token.revoked_at is not None or now >= token.expires_at:
        raise NotSignedIn("the token is unknown, expired or revoked; make a new one")
    if scope not in token.scopes:
        raise Forbidden(f"token {token.prefix}... lacks the scope {scope!r}; it has {', '.join(token.scopes)}")
    person = session.get_one(Annotator, token.annotator_id)
    if person.role not in SCOPES[scope]:
        raise Forbidden(
            f"the scope {scope!r} of token {token.prefix}... is for a lead; {person.handle} is {person.role}"
        )
    if person.status != "active":
        raise Forbidden(f"the account of token {token.prefix}... is {person.status}; ask the lead")
    return person


def tokens_of(session: Session, annotator_id: str, now: float) -> list[Token]:
    """The keys of this person that open anything, the newest first."""
    own = select(Token).where(Token.annotator_id == annotator_id, Token.revoked_at.is_(None), Token.expires_at > now)
    return list(session.scalars(own.order_by(Token.created_at.desc(), Token.id)))


def revoke_token(session: Session, token_id: str, actor: str, now: float, owner: str | None = None) -> None:
    """Ends a token. owner: whose it must be. Raises NotFound."""
    token = session.get(Token, token_id)
    if token is None or owner not in (None, token.annotator_id):
        raise NotFound(f"token {token_id!r} does not exist")
    if token.revoked_at is None:
        token.revoked_at = now
        audit.append(session, actor, "revoke_token", token.id, now=now)


def revoke_tokens(session: Session, annotator_id: str, actor: str, now: float, role: str | None = None) -> int:
    """Ends a person's tokens; with a role only those that open more than it does. Returns how many they were."""
    ended = [token for token in tokens_of(session, annotator_id, now) if role is None or not _fits(token, role)]
    for token in ended:
        revoke_token(session, token.id, actor, now)
    return len(ended)


def _fits(token: Token, role: str) -> bool:
    return all(role in SCOPES[scope] for scope in token.scopes)


def require_days(days: float, most: int) -> None:
    if not 0 < days <= most:
        raise Refusal(f"days is {days!r}; it must be more than 0 and at most {most}", {"days": f"at most {most}"})

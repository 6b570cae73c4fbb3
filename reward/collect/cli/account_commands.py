"""What `python -m reward.collect accounts` and `revoke` do: who may work here, and what opens their accounts."""

import time
from argparse import Namespace

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect import home
from reward.collect.people import accounts, sessions, tokens
from reward.collect.refusals import NotFound
from reward.collect.store.tables import Annotator
from reward.collect.texts import plural
from rlhf.errors import UserError

SHOWN = 12  # characters of an id, of which `revoke` takes any beginning that is one thing's alone


def show_accounts(session: Session, args: Namespace, now: float) -> list[str]:
    """The lines of all accounts and open invites; of one person what opens their account, after what was to change."""
    changes = {"--pause": args.pause, "--resume": args.resume, "--role": args.role, "--sign-out": args.sign_out}
    named = [name for name, value in changes.items() if value]
    if args.handle is None and named:
        raise UserError(f"{named[0]}: of whom? Name the account: python -m reward.collect accounts HANDLE {named[0]}")
    if args.handle is None:
        return [*map(_account_line, accounts.all_accounts(session, now)), *_invite_lines(session, now)]
    person = accounts.person_named(session, args.handle)
    change(session, person, args, now)
    return _lines_of(session, person, now)


def change(session: Session, person: Annotator, args: Namespace, now: float) -> None:
    if args.pause or args.resume:
        accounts.set_status(session, person.id, "paused" if args.pause else "active", home.ACTOR, now)
    if args.role:
        accounts.set_role(session, person.id, args.role, home.ACTOR, now)
    if args.sign_out:
        sessions.end_sessions(session, person.id, home.ACTOR, now)
        tokens.revoke_tokens(session, person.id, home.ACTOR, now)


def _account_line(row: accounts.Account) -> str:
    seen = f", seen {when(row.seen_at)}" if row.seen_at else ""
    opened = f"{plural(row.num_browsers, 'browser')}{seen}, {plural(row.num_tokens, 'token')}"
    return f"{row.person.handle}: {row.person.role}, {row.person.status}; {opened}"


def _invite_lines(session: Session, now: float) -> list[str]:
    handles = dict(session.execute(select(Annotator.id, Annotator.handle)).all())
    return [
        f"invite {one.sha256[:SHOWN]}: for {_purpose(one, handles)}, until {when(one.expires_at)}"
        for one in accounts.open_invites(session, now)
    ]


def _purpose(invite, handles: dict[str, str]) -> str:
    return f"a new password of {handles[invite.annotator_id]}" if invite.annotator_id else f"a new {invite.role}"


def _lines_of(session: Session, person: Annotator, now: float) -> list[str]:
    lines = [f"{person.handle}: {person.role}, {person.status}, since {when(person.created_at)}"]
    for one in sessions.sessions_of(session, person.id, now):
        where = f"{one.browser or 'not known'} at {one.address or 'an address not known'}"
        lines.append(f"browser {one.sha256[:SHOWN]}: {where}, since {when(one.created_at)}, seen {when(one.seen_at)}")
    for one in tokens.tokens_of(session, person.id, now):
        lines.append(f"token {one.id[:SHOWN]}: {one.prefix}..., {', '.join(one.scopes)}, until {when(one.expires_at)}")
    return lines


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def revoke(session: Session, beginning: str, now: float) -> str:
    """Ends the browser's session, token or invite whose id begins so, and says what it was."""
    found = [(kind, id, end) for kind, id, end in _what_opens(session, now) if id.startswith(beginning)]
    if len(found) != 1:
        many = f"{len(found)} ids begin so; give more of it" if found else "nothing that opens an account has this id"
        raise NotFound(f"{beginning!r}: {many}. python -m reward.collect accounts [HANDLE] lists them")
    kind, id, end = found[0]
    end(session, id, home.ACTOR, now)
    return f"{kind} {id[:SHOWN]}: ended"


def _what_opens(session: Session, now: float):
    for invite in accounts.open_invites(session, now):
        yield "invite", invite.sha256, accounts.end_invite
    for person_id in session.scalars(select(Annotator.id)).all():
        for one in sessions.sessions_of(session, person_id, now):
            yield "browser", one.sha256, sessions.end_session
        for token in tokens.tokens_of(session, person_id, now):
            yield "token", token.id, tokens.revoke_token

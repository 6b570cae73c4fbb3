"""What routes ask for: the database, the time, who is there, and what they sent.

A page takes `Person` or `Lead`; a route of the API person(scope) or lead_person(scope), which tokens open too.
What only looks something up is async: it runs at once, where what is not takes a thread.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends
from starlette.datastructures import ImmutableMultiDict
from starlette.requests import Request

from reward.collect.figures.kept import KeptFigures
from reward.collect.people import paused, sessions, tokens
from reward.collect.refusals import Forbidden, NotSignedIn, Refusal
from reward.collect.store import tables
from reward.collect.store.collection import collection_of, guidelines_in_force
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotator
from reward.collect.texts import all_text, is_text
from reward.collect.web.security import SAFE_METHODS, require_csrf_token, require_same_origin

MAX_FORM_FIELDS = 1000


@dataclass(frozen=True)
class Visitor:
    """Somebody whose browser is signed in."""

    annotator: Annotator
    session: tables.Session
    has_guidelines: bool  # whether there are any to read


async def database(request: Request) -> Database:
    return request.app.state.database


async def folder(request: Request) -> Path:
    """The collection's folder, where versions go."""
    return request.app.state.folder


async def figures(request: Request) -> KeptFigures:
    return request.app.state.figures


async def now(request: Request) -> float:
    return request.app.state.now()


async def request_id(request: Request) -> str:
    return request.state.request_id


async def address(request: Request) -> str:
    """The client's address. Behind a proxy: what the proxy says it is; anything before that the client could invent."""
    forwarded = ",".join(request.headers.getlist("x-forwarded-for")).split(",")[-1].strip()  # some add a line of theirs
    if request.app.state.behind_proxy and forwarded:
        return forwarded[:100]
    return request.client.host if request.client else ""


async def client(request: Request) -> sessions.Client:
    """What the browser says of itself."""
    known = request.cookies.get(cookie_name(request, "known"))
    return sessions.Client(await address(request), request.headers.get("user-agent", ""), known)


Db = Annotated[Database, Depends(database)]
Folder = Annotated[Path, Depends(folder)]
Latest = Annotated[KeptFigures, Depends(figures)]
Now = Annotated[float, Depends(now)]
RequestId = Annotated[str, Depends(request_id)]
Client = Annotated[sessions.Client, Depends(client)]


# Who is there


def cookie_name(request: Request, kind: str = "session") -> str:
    """Of this collection alone: browsers send cookies to all ports of a host.

    With https its prefix makes browsers refuse one that another host, or plain http, has set.
    """
    name = f"{kind}-{request.app.state.mark}"
    return f"__Host-{name}" if request.app.state.origin else name


def cookie_secret(request: Request) -> str | None:
    return request.cookies.get(cookie_name(request))


def bearer(request: Request) -> str | None:
    """The token that came with a request to the API. It goes before the cookie."""
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    is_api = request.scope["path"].startswith("/api/")
    return secret.strip() if is_api and kind.lower() == "bearer" else None


def visitor(request: Request, database: Db, now: Now) -> Visitor | None:
    """Whose browser this is, by its cookie."""
    secret = cookie_secret(request)
    if secret is None or bearer(request) is not None:
        return None
    with database.read() as session:
        signed = sessions.signed_in(session, secret, now)
        has_guidelines = bool(guidelines_in_force(session).text.strip())
        request.app.state.name = collection_of(session).name  # init may have changed it
    if signed is None:
        return None
    if now - signed[1].seen_at >= sessions.SEEN_EVERY:
        with database.write() as session:
            sessions.mark_seen(session, signed[1], now)
    request.state.visitor = Visitor(*signed, has_guidelines)  # also for the page that reports an error
    return request.state.visitor


SignedIn = Annotated[Visitor | None, Depends(visitor)]


def require_signed_in(visitor: Visitor | None) -> Annotator:
    if visitor is None:
        raise NotSignedIn("sign in first")
    return visitor.annotator


def require_lead(person: Annotator) -> Annotator:
    if person.role != "lead":
        raise Forbidden("This is for leads only.")
    if person.status != "active":
        raise Forbidden(paused.MESSAGE)
    return person


async def annotator(visitor: SignedIn) -> Annotator:
    return require_signed_in(visitor)


Person = Annotated[Annotator, Depends(annotator)]


async def lead(person: Person) -> Annotator:
    return require_lead(person)


Lead = Annotated[Annotator, Depends(lead)]


def person(scope: str):
    """Who calls the API: by cookie, or by a token with this scope."""

    def caller(request: Request, database: Db, now: Now, visitor: SignedIn) -> Annotator:
        secret = bearer(request)
        if secret is None:
            return require_signed_in(visitor)
        with database.read() as session:
            return tokens.token_holder(session, secret, scope, now)

    return Depends(caller)


def lead_person(scope: str):
    """Like person(scope), and a lead."""

    async def caller(person: Annotated[Annotator, person(scope)]) -> Annotator:
        return require_lead(person)

    return Depends(caller)


# What they sent


async def form(request: Request) -> ImmutableMultiDict[str, str]:
    """The fields of a form, read without a parser for uploads. Raises Refusal for anything else."""
    if not has_content_type(request, "application/x-www-form-urlencoded"):
        raise Refusal("send this as a form (application/x-www-form-urlencoded)")
    try:
        body = (await request.body()).decode("ascii")
        fields = parse_qsl(body, keep_blank_values=True, errors="strict", max_num_fields=MAX_FORM_FIELDS)
    except ValueError:  # also of UnicodeDecodeError
        raise Refusal(f"the form is not UTF-8, or has more than {MAX_FORM_FIELDS} fields") from None
    if not all(is_text(part) for field in fields for part in field):
        raise Refusal("the form contains a NUL character; remove it")
    return ImmutableMultiDict([(name, value.replace("\r\n", "\n")) for name, value in fields])


async def json_body(request: Request) -> dict:
    """The JSON object that was sent. Raises Refusal for anything else."""
    if not has_content_type(request, "application/json"):
        raise Refusal("send this as JSON (Content-Type: application/json)")
    try:
        body = json.loads(await request.body(), parse_constant=_no_such_number)
        can_be_stored = all_text(body)
    except (ValueError, RecursionError):
        raise Refusal("the body is not JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise Refusal(f"the body is a JSON {type(body).__name__}; send an object")
    if not can_be_stored:
        raise Refusal("the body contains a NUL or half a character; remove it")
    return body


def _no_such_number(name: str):
    raise ValueError(name)


def has_content_type(request: Request, expected: str) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == expected


Form = Annotated[ImmutableMultiDict[str, str], Depends(form)]
JsonBody = Annotated[dict, Depends(json_body)]


async def password_turn(request: Request, form: Form):
    """A place among the few whose passwords are hashed, once the form is here. Who waits for one takes no thread."""
    async with request.app.state.password_turns:
        yield


def days_of(form: ImmutableMultiDict) -> int:
    """What the field `days` says."""
    days = form.get("days", "")
    if not days.isascii() or not days.isdecimal():
        raise Refusal(f"days is {days[:20]!r}; give a whole number", {"days": "a whole number"})
    return int(days[:6])


# Before every route but those of health.py


async def guard(request: Request, visitor: SignedIn) -> None:
    """Nothing changes by a request that another site made in the name of somebody who is signed in."""
    if request.method in SAFE_METHODS or bearer(request) is not None:
        return
    require_same_origin(request.headers, request.scope["scheme"], request.app.state.origin)
    if visitor is not None:
        given = request.headers.get("x-csrf-token")
        if given is None and has_content_type(request, "application/x-www-form-urlencoded"):
            given = (await form(request)).get("csrf_token")
        require_csrf_token(given, visitor.session.csrf_token)

"""Signing in and out, and accepting an invite."""

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from reward.collect.people import accounts, passwords, sessions
from reward.collect.refusals import NotSignedIn, Refusal, TooMany
from reward.collect.store.tables import Annotator
from reward.collect.web.dependencies import (
    Client,
    Db,
    Form,
    Now,
    Person,
    SignedIn,
    cookie_name,
    cookie_secret,
    password_turn,
)
from reward.collect.web.pages import page

KNOWN_SECONDS = 180 * 86400  # that a browser is known as one in which somebody has signed in

router = APIRouter()


@router.get("/sign-in")
def show_sign_in(request: Request, visitor: SignedIn, next: str = "/") -> Response:
    if visitor is not None:
        return RedirectResponse(own_path(next), 303)
    return _sign_in_page(request, next=own_path(next))


@router.post("/sign-in", dependencies=[Depends(password_turn)])
def sign_in(request: Request, database: Db, now: Now, client: Client, form: Form) -> Response:
    handle, back = form.get("handle", ""), own_path(form.get("next", "/"))
    try:
        secret = sessions.sign_in(database, handle, form.get("password", ""), client, now)
    except NotSignedIn as error:
        return _sign_in_page(request, 401, message=str(error), handle=handle[:40], next=back)
    except TooMany as error:
        retry = {"Retry-After": str(error.retry_after)}
        return _sign_in_page(request, 429, retry, message=str(error), handle=handle[:40], next=back)
    return enter(request, database, secret, back, now)


def _sign_in_page(request: Request, status: int = 200, headers=None, *, message="", handle="", next="/") -> Response:
    return page(request, "sign_in.html.j2", status, headers, message=message, handle=handle, next=next)


def own_path(path: str) -> str:
    """The path to go on to, or / for what could lead to another site."""
    is_own = path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable() and path.isascii()
    return path if is_own else "/"


def enter(request: Request, database: Db, secret: str, path: str, now: float) -> Response:
    """Goes on with the new session; the one that the browser had before ends, so nobody can plant one."""
    with database.write() as session:
        if cookie_secret(request) is not None:
            sessions.sign_out(session, cookie_secret(request))
        known = sessions.known_browser(session, sessions.signed_in(session, secret, now)[0])
    response = RedirectResponse(path, 303)
    response.set_cookie(cookie_name(request), secret, **_cookie_rules(request))
    response.set_cookie(cookie_name(request, "known"), known, KNOWN_SECONDS, **_cookie_rules(request))
    return response


def _cookie_rules(request: Request) -> dict:
    return {"httponly": True, "samesite": "lax", "secure": request.app.state.origin is not None, "path": "/"}


@router.post("/sign-out")
def sign_out(request: Request, database: Db, person: Person) -> Response:
    with database.write() as session:
        sessions.sign_out(session, cookie_secret(request))
    response = RedirectResponse("/sign-in", 303)  # the browser stays known as one in which this person has signed in
    response.delete_cookie(cookie_name(request), **_cookie_rules(request))
    return response


@router.get("/invite/{secret}")
def show_invite(request: Request, database: Db, now: Now, secret: str, visitor: SignedIn) -> Response:
    return _invite_page(request, *_invited(database, secret, now))


def _invited(database: Db, secret: str, now: float) -> tuple[str, str | None]:
    """(role, handle of the person whose new password it is for, or None) of an invite that can be used."""
    with database.read() as session:
        invite = accounts.usable_invite(session, secret, now)
        person = invite.annotator_id and session.get_one(Annotator, invite.annotator_id)
        return invite.role, person and person.handle


@router.post("/invite/{secret}", dependencies=[Depends(password_turn)])
def accept_invite(request: Request, database: Db, now: Now, secret: str, client: Client, form: Form) -> Response:
    role, known = _invited(database, secret, now)
    handle, password = form.get("handle", ""), form.get("password", "")
    try:
        if password != form.get("password_again", ""):
            raise Refusal("the two passwords differ; type the same one twice", {"password_again": "differs"})
        with database.write() as session:
            person = accounts.accept_invite(session, secret, handle, password, now)
            cookie = sessions.open_session(session, person.id, now, client)
    except Refusal as error:
        if not error.fields:
            raise
        return _invite_page(request, role, known, 422, message=str(error), handle=handle[:40], wrong=error.fields)
    return enter(request, database, cookie, "/", now)


def _invite_page(request: Request, role, known, status: int = 200, *, message="", handle="", wrong=None) -> Response:
    rules = {"min_password": passwords.MIN_PASSWORD, "max_password": passwords.MAX_PASSWORD}
    shown = {"role": role, "known": known, "message": message, "handle": handle, "wrong": wrong or {}}
    return page(request, "invite.html.j2", status, **shown, **rules)

"""One's own account: the browsers that are signed in, the keys for scripts, the password."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from reward.collect.people import accounts, passwords, sessions, tokens
from reward.collect.refusals import Refusal
from reward.collect.store.tables import Annotator
from reward.collect.web import lead_views
from reward.collect.web.account_pages import enter
from reward.collect.web.dependencies import Client, Db, Form, Now, Person, SignedIn, days_of
from reward.collect.web.pages import page

router = APIRouter(prefix="/account")


@router.get("")
def show_account(request: Request, database: Db, now: Now, person: Person) -> Response:
    return _account_page(request, database, person, now)


def _account_page(request: Request, database: Db, person: Annotator, now: float, status: int = 200, **said) -> Response:
    with database.read() as session:
        browsers = sessions.sessions_of(session, person.id, now)
        keys = tokens.tokens_of(session, person.id, now)
    scopes = [scope for scope, roles in tokens.SCOPES.items() if person.role in roles]
    shown = {"browsers": browsers, "tokens": keys, "scopes": scopes, "this": request.state.visitor.session.sha256}
    rules = {"min_password": passwords.MIN_PASSWORD, "max_password": passwords.MAX_PASSWORD}
    told = {"message": "", "secret": "", "views": lead_views}
    return page(request, "account.html.j2", status, **shown | rules | told | said)


@router.post("/browsers/{sha256}/end")
def end_browser(database: Db, now: Now, person: Person, sha256: str) -> Response:
    with database.write() as session:
        sessions.end_session(session, sha256, person.id, now, owner=person.id)
    return RedirectResponse("/account", 303)


@router.post("/sign-out-others")
def sign_out_others(request: Request, database: Db, now: Now, person: Person) -> Response:
    """Everywhere but here."""
    with database.write() as session:
        sessions.end_sessions(session, person.id, person.id, now, but=request.state.visitor.session.sha256)
    return RedirectResponse("/account", 303)


@router.post("/tokens")
def create_token(request: Request, database: Db, now: Now, person: Person, form: Form) -> Response:
    """The secret is in this answer and nowhere else."""
    try:
        with database.write() as session:
            secret, _ = tokens.create_token(session, person, form.getlist("scope"), days_of(form), now)
    except Refusal as error:
        return _account_page(request, database, person, now, error.status, message=str(error))
    return _account_page(request, database, person, now, 201, secret=secret)


@router.post("/tokens/{token_id}/revoke")
def revoke_token(database: Db, now: Now, person: Person, token_id: str) -> Response:
    with database.write() as session:
        tokens.revoke_token(session, token_id, person.id, now, owner=person.id)
    return RedirectResponse("/account", 303)


@router.post("/password")
def change_password(
    request: Request, database: Db, now: Now, person: Person, visitor: SignedIn, client: Client, form: Form
) -> Response:
    present, password = form.get("present", ""), form.get("password", "")
    try:
        if password != form.get("password_again", ""):
            raise Refusal("the two passwords differ; type the same one twice")
        secret = accounts.change_password(database, person, present, password, client, now)
    except Refusal as error:
        status = 422 if error.status == 401 else error.status  # who is here is signed in
        return _account_page(request, database, person, now, status, message=str(error))
    return enter(request, database, secret, "/account", now)

"""All accounts, and what opens them: who may work here, as what, and which links and keys can still be used."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from reward.collect.people import accounts, sessions, tokens
from reward.collect.refusals import Refusal
from reward.collect.web.dependencies import Db, Form, Lead, Now
from reward.collect.web.lead_pages import lead_page

router = APIRouter(prefix="/lead")


@router.get("/accounts")
def show_accounts(request: Request, database: Db, now: Now, person: Lead) -> Response:
    return _accounts_page(request, database, person.id, now)


def _accounts_page(request: Request, database: Db, me: str, now: float, status: int = 200, message="") -> Response:
    with database.read() as session:
        rows, invites = accounts.all_accounts(session, now), accounts.open_invites(session, now)
        keys = [(row.person, token) for row in rows for token in tokens.tokens_of(session, row.person.id, now)]
    handles = {row.person.id: row.person.handle for row in rows}
    shown = {"rows": rows, "invites": invites, "tokens": keys, "handles": handles, "me": me, "message": message}
    return lead_page(request, "accounts", status, **shown)


@router.post("/accounts/{annotator_id}")
def change_account(request: Request, database: Db, now: Now, person: Lead, annotator_id: str, form: Form) -> Response:
    """form: a status, or a role."""
    try:
        with database.write() as session:
            if "role" in form:
                accounts.set_role(session, annotator_id, form["role"], person.id, now)
            else:
                accounts.set_status(session, annotator_id, form.get("status", ""), person.id, now)
    except Refusal as error:
        return _accounts_page(request, database, person.id, now, error.status, str(error))
    return _back()


@router.post("/accounts/{annotator_id}/sign-out")
def sign_out(database: Db, now: Now, person: Lead, annotator_id: str) -> Response:
    with database.write() as session:
        accounts.require_account(session, annotator_id)
        sessions.end_sessions(session, annotator_id, person.id, now)
    return _back()


@router.post("/tokens/{token_id}/revoke")
def revoke_token(database: Db, now: Now, person: Lead, token_id: str) -> Response:
    with database.write() as session:
        tokens.revoke_token(session, token_id, person.id, now)
    return _back()


@router.post("/invites/{sha256}/end")
def end_invite(database: Db, now: Now, person: Lead, sha256: str) -> Response:
    with database.write() as session:
        accounts.end_invite(session, sha256, person.id, now)
    return _back()


def _back() -> Response:
    return RedirectResponse("/lead/accounts", 303)

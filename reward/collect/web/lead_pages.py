"""What a lead sees and decides: progress, quality, annotators, comparisons, review, versions, guidelines, invites."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from reward.collect import formats, home
from reward.collect.export import versions
from reward.collect.figures import quality
from reward.collect.figures.kept import Known
from reward.collect.people import accounts
from reward.collect.ranking import review
from reward.collect.refusals import Refusal
from reward.collect.store.tables import Annotator, Guidelines, Invite
from reward.collect.texts import clean_text
from reward.collect.web import lead_views, markdown
from reward.collect.web.api import PATIENCE
from reward.collect.web.dependencies import Db, Folder, Form, Latest, Lead, Now, days_of
from reward.collect.web.pages import page

MAX_GUIDELINES = 200_000  # characters
MAX_INVITES, MAX_REVIEWED = 20, 50  # shown on a page
REFRESH_SECONDS = 3  # after which a page without figures asks for them again

PageNumber = Annotated[int, Query(alias="page", ge=1, le=10**6)]

router = APIRouter(prefix="/lead")


def lead_page(request: Request, name: str, status: int = 200, **context) -> Response:
    """A page of the lead's, with the words of lead_views."""
    return page(request, f"lead_{name}.html.j2", status, views=lead_views, section=name, **context)


# -- overview and invites --


@router.get("")
def overview(request: Request, database: Db, now: Now, person: Lead) -> Response:
    return _overview(request, database, now)


@router.post("/invites")
def invite(request: Request, database: Db, now: Now, person: Lead, form: Form) -> Response:
    """The link is in this answer and nowhere else: only a hash of it is stored."""
    try:
        with database.write() as session:
            secret = accounts.create_invite(session, form.get("role", ""), days_of(form), person.id, now)
    except Refusal as error:
        return _overview(request, database, now, error.status, message=str(error))
    return _overview(request, database, now, 201, invite_link=f"{_origin(request)}/invite/{secret}")


def _overview(request: Request, database: Db, now: float, status: int = 200, **said) -> Response:
    with database.read() as session:
        progress, invites = quality.progress_report(session), recent_invites(session)
    pictures = [lead_views.days_picture(progress), lead_views.people_picture(progress)]
    context = {
        "progress": progress,
        "invites": invites,
        "pictures": pictures,
        "now": now,
        "invite_link": "",
        "message": "",
    }
    return lead_page(request, "overview", status, **context | said)


def recent_invites(session: Session) -> list[tuple[Invite, str | None]]:
    """(invite, who used it), the newest first."""
    found = select(Invite, Annotator.handle).outerjoin(Annotator, Invite.annotator_id == Annotator.id)
    return session.execute(found.order_by(Invite.created_at.desc()).limit(MAX_INVITES)).all()


def _origin(request: Request) -> str:
    return request.app.state.origin or f"{request.scope['scheme']}://{request.headers['host']}"


# -- quality and annotators --


def measured_page(request: Request, name: str, known: Known, **context) -> Response:
    """A page of figures, which says of when they are."""
    return lead_page(request, name, known=known, figures=known.figures, **context)


def waiting_page(request: Request, name: str, known: Known) -> Response:
    """In place of a page whose figures are being made for the first time. It asks again by itself."""
    headers = {} if known.problem else {"Refresh": f"{REFRESH_SECONDS}"}
    return page(request, "lead_waiting.html.j2", 200, headers, views=lead_views, section=name, known=known)


@router.get("/quality")
def show_quality(request: Request, latest: Latest, person: Lead) -> Response:
    known = latest.latest()
    if known.figures is None:
        return waiting_page(request, "quality", known)
    report, team = known.figures.agreement, known.figures.annotators["team"]
    pictures = [view(team) for view in (lead_views.position_picture, lead_views.seconds_picture)]
    pictures = [lead_views.agreement_picture(report), *pictures]
    return measured_page(request, "quality", known, report=report, team=team, pictures=pictures)


@router.get("/annotators")
def show_annotators(request: Request, database: Db, latest: Latest, person: Lead) -> Response:
    known = latest.latest()
    if known.figures is None:
        return waiting_page(request, "annotators", known)
    with database.read() as session:
        statuses = dict(session.execute(select(Annotator.id, Annotator.status)).all())
    rows = [row | {"status": statuses[row["id"]]} for row in known.figures.annotators["annotators"]]
    pictures = [lead_views.gold_picture(rows), lead_views.first_shown_picture(rows)]
    return measured_page(request, "annotators", known, rows=rows, pictures=pictures, me=person.id)


@router.post("/annotators/{annotator_id}/status")
def set_status(database: Db, now: Now, person: Lead, annotator_id: str, form: Form) -> Response:
    with database.write() as session:
        accounts.set_status(session, annotator_id, form.get("status", ""), person.id, now)
    return RedirectResponse("/lead/annotators", 303)


# -- comparison --


@router.get("/comparison")
def show_comparisons(request: Request, latest: Latest, person: Lead) -> Response:
    known = latest.latest()
    if known.figures is None:
        return waiting_page(request, "comparison", known)
    views = [lead_views.comparison_view(report) for report in known.figures.comparisons]
    return measured_page(request, "comparison", known, comparisons=views)


# -- review --


@router.get("/review")
def show_review(request: Request, database: Db, person: Lead, number: PageNumber = 1) -> Response:
    with database.read() as session:
        num_items = review.num_complained(session)
        rows = review.review_report(session, MAX_REVIEWED, (number - 1) * MAX_REVIEWED)
    last = max(1, -(-num_items // MAX_REVIEWED))
    return lead_page(request, "review", rows=rows, num_items=num_items, number=number, last=last)


@router.post("/review/{item_id}")
def decide(database: Db, now: Now, person: Lead, item_id: str, form: Form) -> Response:
    decisions = {"reopen": review.reopen, "cancel": review.cancel}
    if form.get("decision") not in decisions:
        raise Refusal(f"decision is {form.get('decision')!r:.40}; choose reopen or cancel")
    with database.write() as session:
        decisions[form["decision"]](session, item_id, person.id, now)
    return RedirectResponse("/lead/review", 303)


# -- versions --


@router.get("/versions")
def show_versions(request: Request, database: Db, person: Lead) -> Response:
    return _versions(request, database)


@router.post("/versions")
def export(request: Request, database: Db, folder: Folder, now: Now, person: Lead) -> Response:
    try:
        path, is_new = versions.export_version(database, folder, person.id, now, PATIENCE)
    except Refusal as error:
        return _versions(request, database, error.status, str(error))
    if is_new:
        return RedirectResponse("/lead/versions", 303)
    return _versions(request, database, told=f"Nothing new since version {path.name}, which stands for what there is.")


def _versions(request: Request, database: Db, status: int = 200, message: str = "", told: str = "") -> Response:
    with database.read() as session:
        rows = versions.versions_of(session)
        handles = dict(session.execute(select(Annotator.id, Annotator.handle)).all())
    context = {"rows": rows, "handles": handles, "formats": formats.FORMATS, "message": message, "told": told}
    return lead_page(request, "versions", status, **context)


# -- guidelines --


@router.get("/guidelines")
def show_guidelines(request: Request, database: Db, person: Lead) -> Response:
    return _guidelines(request, database)


@router.post("/guidelines")
def publish(request: Request, database: Db, now: Now, person: Lead, form: Form) -> Response:
    """A new version, unless nothing changed. The older ones stay: rankings name the one that they were made under."""
    text = form.get("text", "")
    try:
        text = clean_text(text, "text", MAX_GUIDELINES, required=True)
    except Refusal as error:
        return _guidelines(request, database, error.status, str(error), text)
    with database.write() as session:
        home.add_guidelines(session, text, now, person.id)
    return RedirectResponse("/lead/guidelines", 303)


def _guidelines(request: Request, database: Db, status: int = 200, message: str = "", text: str | None = None):
    with database.read() as session:
        rows = list(session.scalars(select(Guidelines).order_by(Guidelines.version.desc())))
    shown = [(row, markdown.guidelines(row.text)) for row in rows]
    entered = rows[0].text if text is None else text
    return lead_page(request, "guidelines", status, shown=shown, text=entered, message=message)

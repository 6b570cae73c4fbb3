"""What an annotator sees: the next item, their own rankings, the guidelines, help.

The page ranks through the API (static/rank.js). Without JavaScript its form comes here, with a place for each response.
"""

from fastapi import APIRouter
from starlette.datastructures import ImmutableMultiDict
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from reward.collect.ranking import annotations, queue
from reward.collect.ranking.queue import NoWork, Work
from reward.collect.ranking.submissions import parse_submission
from reward.collect.refusals import Refusal
from reward.collect.store.collection import settings_of
from reward.collect.store.database import Database
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Annotator
from reward.collect.web import shown
from reward.collect.web.dependencies import Db, Form, Now, Person, RequestId
from reward.collect.web.pages import page

SKIP_REASONS = (
    "I cannot judge this",
    "I do not know this language",
    "I would rather not read about this",
    "Something is broken",
    "Another reason",
)
FLAG_REASONS = (
    "Harmful or illegal",
    "Personal data",
    "Cannot be answered",
    "Gives away which model wrote it",
    "Something is broken",
    "Another reason",
)
HEADINGS = {
    "paused": "Your work is paused",
    "empty": "Nothing here yet",
    "lease_wait": "Nothing free at the moment",
    "review": "Waiting for the lead",
    "all_done": "Nothing left for you at the moment",
}
PER_PAGE = 20

router = APIRouter()


@router.get("/")
def home(person: Person) -> Response:
    return RedirectResponse("/lead" if person.role == "lead" else "/rank", 303)


@router.get("/rank")
def show_next(request: Request, database: Db, now: Now, person: Person, stored: str = "") -> Response:
    with database.write() as session:
        work = queue.next_work(session, person, now)
    if isinstance(work, NoWork):
        return _no_work_page(request, database, person, work, stored, now)
    return _rank_page(request, database, person, work, now, stored=stored)


@router.post("/rank/{slot_id}")
def act(
    request: Request, database: Db, now: Now, person: Person, number: RequestId, slot_id: str, form: Form
) -> Response:
    """What the form says without JavaScript. What cannot be stored comes back as it was entered, with the reason."""
    with database.read() as session:
        settings = settings_of(session)
    said = entered(form, settings)
    try:
        return RedirectResponse(_done(database, person, slot_id, form, said, number, now), 303)
    except Refusal as refusal:
        if refusal.status != 422:
            raise
        with database.write() as session:
            work = queue.work_of(session, person, slot_id)
            annotations.save_draft(session, person, slot_id, said, work.draft_rev, now)
            work = queue.work_of(session, person, slot_id)
        return _rank_page(request, database, person, work, now, error=str(refusal))


def _done(database: Database, person: Annotator, slot_id: str, form, said: dict, number: str, now: float) -> str:
    """Does it, and says where to go on."""
    with database.write() as session:
        if form.get("action") == "skip":
            queue.skip(session, person, slot_id, form.get("skip_reason", ""), now, number)
            return "/rank"
        if form.get("action") == "flag":
            target, reason, note = (form.get(f"flag_{name}", "") for name in ("target", "reason", "note"))
            queue.flag(session, person, slot_id, target or None, reason, note, now, number)
            draft_rev = queue.work_of(session, person, slot_id).draft_rev
            annotations.save_draft(session, person, slot_id, said, draft_rev, now)
            return "/rank"
        _require_reason(said)
        seconds = queue.seconds_held(session, person, slot_id, now)
        body = said | {"active_seconds": seconds, "client": {"ways": ["form"]}}
        submission, key = parse_submission(body), form.get("key", "")
        return f"/rank?stored={annotations.submit(session, person, slot_id, submission, key, now, number).id}"


def entered(form: ImmutableMultiDict, settings: Settings) -> dict:
    """What the fields of the form say, as a submission.

    The form itself says of which responses: the item may be with somebody else now, and what is too late is kept.
    """
    places = {name.removeprefix("place-"): place for name, place in form.items() if name.startswith("place-")}
    none = "none" in form
    return {
        "ranks": {} if none else {one: _number(place) for one, place in places.items()},
        "unacceptable": [one for one, place in places.items() if place == "unacceptable" and not none],
        "not_rankable": form.get("not_rankable", "") if none else None,
        "ratings": {name: _ratings(form, i, list(places)) for i, name in enumerate(settings.criteria)},
        "comment": form.get("comment", ""),
        "demonstration": form.get("demonstration", ""),
    }


def _ratings(form: ImmutableMultiDict, criterion: int, response_ids: list[str]) -> dict[str, int]:
    marks = {one: form.get(f"rating-{criterion}-{one}", "") for one in response_ids}
    return {one: _number(mark) for one, mark in marks.items() if _number(mark) is not None}


def _number(choice: str) -> int | None:
    return int(choice) if choice.isdecimal() and len(choice) < 10 else None


def _require_reason(said: dict) -> None:
    if said["not_rankable"] is not None and not said["not_rankable"].strip():
        raise Refusal("say why none can be ranked", {"not_rankable": "is needed"})


def _rank_page(
    request: Request, database: Database, person, work: Work, now: float, *, stored="", error=""
) -> Response:
    with database.read() as session:
        settings, progress = settings_of(session), queue.progress(session, person, now)
        guidelines = shown.guidelines_of(session)
        changed = shown.has_newer_guidelines(session, person, guidelines["version"])
        stored = shown.stored(session, person, stored)
    item = shown.item(work.messages, work.responses, work.draft, settings)
    urls = {name: f"/api/v1/slots/{work.slot_id}/{name}" for name in ("draft", "submit", "skip", "flag", "renew")}
    data = {"urls": urls | {"next": "/rank"}, "draft_rev": work.draft_rev, "copy": f"{person.id}:{work.slot_id}"}
    data["lease_seconds"] = work.lease_until - now
    context = {"stored": stored, "progress": progress, "guidelines": guidelines, "changed": changed, "edits": False}
    return _ranking_page(request, item, data, error, form_url=f"/rank/{work.slot_id}", **context)


def _ranking_page(request: Request, item: shown.ShownItem, data: dict, error: str, **context) -> Response:
    """data: what static/rank.js must know beside the item."""
    context |= {"skip_reasons": SKIP_REASONS, "flag_reasons": FLAG_REASONS, "error": error}
    status, data = 422 if error else 200, data | shown.for_module(item)
    return page(request, "rank.html.j2", status, item=item, data=data, **context)


def _no_work_page(request: Request, database: Database, person, no_work: NoWork, stored: str, now: float) -> Response:
    with database.read() as session:
        own_done = queue.progress(session, person, now).own_done
        stored = shown.stored(session, person, stored)
    context = {"no_work": no_work, "heading": HEADINGS[no_work.reason], "own_done": own_done, "stored": stored}
    wait = shown.duration(no_work.retry_after) if no_work.retry_after else ""
    return page(request, "no_work.html.j2", **context, wait=wait)


# What they have ranked


@router.get("/history")
def show_history(request: Request, database: Db, person: Person, before: str = "", stored: str = "") -> Response:
    with database.read() as session:
        rows = annotations.history(session, person, PER_PAGE + 1, before or None)
        entries = shown.entries(session, rows[:PER_PAGE])
        stored = shown.stored(session, person, stored)
    older = rows[PER_PAGE - 1].id if len(rows) > PER_PAGE else None
    return page(request, "history.html.j2", entries=entries, older=older, stored=stored)


@router.get("/history/{annotation_id}")
def show_ranking(request: Request, database: Db, person: Person, annotation_id: str) -> Response:
    with database.read() as session:
        latest = annotations.latest_of(session, person, annotation_id)
    if latest.id != annotation_id:
        return RedirectResponse(f"/history/{latest.id}", 303)
    return _edit_page(request, database, person, latest)


@router.post("/history/{annotation_id}")
def change(
    request: Request, database: Db, now: Now, person: Person, number: RequestId, annotation_id: str, form: Form
) -> Response:
    """A changed ranking, from the form without JavaScript."""
    with database.read() as session:
        annotation, settings = annotations.latest_of(session, person, annotation_id), settings_of(session)
    said = entered(form, settings)
    try:
        _require_reason(said)
        body = said | {"active_seconds": 0.0, "client": {"ways": ["form"]}}
        with database.write() as session:
            submission, key = parse_submission(body), form.get("key", "")
            stored = annotations.revise(session, person, annotation_id, submission, key, now, number)
    except Refusal as refusal:
        if refusal.status != 422:
            raise
        return _edit_page(request, database, person, annotation, said, str(refusal))
    return RedirectResponse(f"/history?stored={stored.id}", 303)


def _edit_page(
    request: Request, database: Database, person, annotation: Annotation, said: dict | None = None, error: str = ""
) -> Response:
    with database.read() as session:
        settings, guidelines = settings_of(session), shown.guidelines_of(session)
        messages, responses = shown.ranked_item(session, annotation)
    item = shown.item(messages, responses, said or shown.as_entered(annotation), settings)
    urls = {"submit": f"/api/v1/annotations/{annotation.id}/revise", "next": "/history"}
    data = {"urls": urls, "draft_rev": 0, "copy": f"{person.id}:{annotation.id}", "lease_seconds": 0}
    context = {"stored": None, "progress": None, "guidelines": guidelines, "changed": False, "edits": True}
    return _ranking_page(request, item, data, error, form_url=f"/history/{annotation.id}", **context)


# To read


@router.get("/guidelines")
def show_guidelines(request: Request, database: Db, person: Person) -> Response:
    with database.read() as session:
        return page(request, "guidelines.html.j2", guidelines=shown.guidelines_of(session))


@router.get("/help")
def show_help(request: Request, person: Person) -> Response:
    return page(request, "help.html.j2")

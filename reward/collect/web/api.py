"""The JSON API. The same service functions as behind the pages; what it says of an item tells nothing of its kind."""

import hashlib
import json
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Header, Path, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from reward.collect import formats
from reward.collect.export import versions
from reward.collect.figures import quality
from reward.collect.figures.kept import KeptFigures, Known
from reward.collect.people import tokens
from reward.collect.ranking import annotations, queue
from reward.collect.ranking.submissions import parse_submission
from reward.collect.refusals import Refusal, Unavailable
from reward.collect.store.collection import settings_of
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Annotator, Version
from reward.collect.web.dependencies import Db, Folder, JsonBody, Latest, Now, Person, RequestId, lead_person, person

MAX_PAGE = 200  # annotations of one's history in one answer
PATIENCE = 1.0  # seconds that a request waits for another export: its thread is one of those that annotators need
CHUNK_BYTES = 2**18
MEMORY_BYTES = 16 * 2**20  # of an export before it goes through a temporary file

Caller = Annotated[Annotator, person("annotate")]
Reader = Annotated[Annotator, lead_person("read")]
Exporter = Annotated[Annotator, lead_person("export")]
Seq = Annotated[int, Path(ge=1, lt=2**31)]  # what the database can look for
IdempotencyKey = Annotated[str, Header(min_length=8, max_length=200)]

router = APIRouter(prefix="/api/v1")


# Ranking


@router.get("/next")
def next_item(database: Db, now: Now, caller: Caller):
    """The caller's next item, or 204 with the reason in X-Reason."""
    with database.write() as session:
        found = queue.next_work(session, caller, now)
        settings = settings_of(session)
    if isinstance(found, queue.NoWork):
        retry = {} if found.retry_after is None else {"Retry-After": str(found.retry_after)}
        return Response(status_code=204, headers={"X-Reason": found.reason} | retry)
    return work_as_json(found, settings)


def work_as_json(work: queue.Work, settings: Settings) -> dict:
    return {
        "slot_id": work.slot_id,
        "messages": work.messages,
        "responses": [{"id": response_id, "text": text} for response_id, text in work.responses],
        "lease_until": work.lease_until,
        "draft": work.draft,
        "draft_rev": work.draft_rev,
        "settings": settings.for_annotators(),
    }


@router.put("/slots/{slot_id}/draft")
def save_draft(database: Db, now: Now, caller: Caller, slot_id: str, body: JsonBody) -> dict:
    with database.write() as session:
        rev = annotations.save_draft(session, caller, slot_id, body.get("payload"), body.get("rev"), now)
    return {"rev": rev}


@router.post("/slots/{slot_id}/submit")
def submit(
    database: Db,
    now: Now,
    caller: Caller,
    slot_id: str,
    body: JsonBody,
    idempotency_key: IdempotencyKey,
    request_id: RequestId,
) -> dict:
    submission = parse_submission(body)
    with database.write() as session:
        submitted = annotations.submit(session, caller, slot_id, submission, idempotency_key, now, request_id)
    return stored(submitted)


@router.post("/annotations/{annotation_id}/revise")
def revise(
    database: Db,
    now: Now,
    caller: Caller,
    annotation_id: str,
    body: JsonBody,
    idempotency_key: IdempotencyKey,
    request_id: RequestId,
) -> dict:
    submission = parse_submission(body)
    with database.write() as session:
        revised = annotations.revise(session, caller, annotation_id, submission, idempotency_key, now, request_id)
    return stored(revised)


def stored(annotation: Annotation) -> dict:
    """What the database holds now, so that the sender can compare."""
    return {
        "annotation_id": annotation.id,
        "ranks": annotation.ranks,
        "unacceptable": annotation.unacceptable,
        "not_rankable": annotation.not_rankable,
    }


@router.post("/slots/{slot_id}/skip")
def skip(database: Db, now: Now, caller: Caller, slot_id: str, body: JsonBody, request_id: RequestId) -> Response:
    with database.write() as session:
        queue.skip(session, caller, slot_id, body.get("reason"), now, request_id)
    return done()


@router.post("/slots/{slot_id}/flag")
def flag(database: Db, now: Now, caller: Caller, slot_id: str, body: JsonBody, request_id: RequestId) -> Response:
    response_id = body.get("response_id") and member(body, "response_id", str)
    with database.write() as session:
        queue.flag(session, caller, slot_id, response_id, body.get("reason"), body.get("note"), now, request_id)
    return done()


@router.post("/slots/{slot_id}/release")
def release(database: Db, now: Now, caller: Caller, slot_id: str) -> Response:
    with database.write() as session:
        queue.release(session, caller, slot_id, now)
    return done()


@router.post("/slots/{slot_id}/renew")
def renew(database: Db, now: Now, caller: Caller, slot_id: str) -> dict:
    with database.write() as session:
        return {"lease_until": queue.renew(session, caller, slot_id, now)}


@router.get("/me/history")
def own_history(
    database: Db, caller: Caller, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50, before: str | None = None
) -> dict:
    """The caller's own rankings, the newest first. before: the `next` of the page before."""
    with database.read() as session:
        found = annotations.history(session, caller, limit, before)
    following = found[-1].id if len(found) == limit else None
    return {"annotations": [own_annotation(one) for one in found], "next": following}


def own_annotation(annotation: Annotation) -> dict:
    names = ("slot_id", "revision", "display_order", "ratings", "comment", "demonstration", "submitted_at")
    return stored(annotation) | {name: getattr(annotation, name) for name in names}


# For leads


@router.get("/progress")
def progress(database: Db, caller: Reader) -> dict:
    with database.read() as session:
        return quality.progress_report(session)


@router.get("/agreement")
def agreement(latest: Latest, caller: Reader) -> dict:
    known = known_figures(latest)
    return known.figures.agreement | of_when(known)


@router.get("/annotators")
def annotators(latest: Latest, caller: Reader) -> dict:
    known = known_figures(latest)
    return known.figures.annotators | of_when(known)


def known_figures(latest: KeptFigures) -> Known:
    """Raises Unavailable where the first ones are being made."""
    known = latest.latest()
    if known.figures is None:
        raise Unavailable(known.problem or "the figures of so many rankings are being made; ask again in a few seconds")
    return known


def of_when(known: Known) -> dict:
    """is_current: nothing has changed since made_at. Where it is false, newer figures are being made."""
    return {"made_at": known.figures.made_at, "is_current": known.is_current}


# Versions


@router.post("/versions", status_code=201)
def make_version(database: Db, folder: Folder, now: Now, caller: Exporter, response: Response) -> dict:
    """A new version; or, with 200, the newest one, where it holds all there is."""
    path, is_new = versions.export_version(database, folder, caller.id, now, PATIENCE)
    response.status_code = 201 if is_new else 200
    with database.read() as session:
        return version_as_json(session.get_one(Version, int(path.name)))


@router.get("/versions")
def list_versions(database: Db, caller: Exporter) -> dict:
    with database.read() as session:
        return {"versions": [version_as_json(one) for one in versions.versions_of(session)]}


def version_as_json(version: Version) -> dict:
    names = ("seq", "manifest_sha256", "counts", "created_by", "created_at")
    return {name: getattr(version, name) for name in names}


@router.get("/versions/{seq}/export")
def export(
    request: Request, database: Db, folder: Folder, caller: Exporter, seq: Seq, format: str = "canonical"
) -> Response:
    """A version in one of the formats; their options are further parameters. The ETag is the sha256 of what is sent.

    X-Left-Out: {reason: rankings}, where the format cannot hold some.
    """
    with database.read() as session:
        path = versions.version_folder(session, folder, seq)
    options = {name: value for name, value in request.query_params.items() if name != "format"}
    file = SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115 closed with the last chunk
    written = formats.write(format, versions.version_rows(path, format), file, **options)
    headers = {"ETag": f'"{sha256_of(file)}"'}
    headers |= {"X-Left-Out": json.dumps(written.left_out)} if written.left_out else {}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    known = formats.FORMATS[format]
    headers["Content-Disposition"] = f'attachment; filename="version-{seq}-{format}{known.suffix}"'
    return StreamingResponse(chunks(file), headers=headers, media_type=known.media_type)


def sha256_of(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


# Tokens. A token cannot make others: only who is signed in can.


@router.post("/tokens", status_code=201)
def create_token(database: Db, now: Now, caller: Person, body: JsonBody) -> dict:
    """The secret is in this answer and nowhere else."""
    scopes, days = member(body, "scopes", list), member(body, "days", int | float)
    if not all(isinstance(scope, str) for scope in scopes):
        raise Refusal("scopes must be a list of strings", {"scopes": "strings"})
    with database.write() as session:
        secret, token = tokens.create_token(session, caller, scopes, days, now)
    return {"id": token.id, "token": secret, "scopes": token.scopes, "expires_at": token.expires_at}


@router.delete("/tokens/{token_id}")
def revoke_token(database: Db, now: Now, caller: Person, token_id: str) -> Response:
    with database.write() as session:
        owner = None if caller.role == "lead" and caller.status == "active" else caller.id
        tokens.revoke_token(session, token_id, caller.id, now, owner)
    return done()


def done() -> Response:
    return Response(status_code=204)


def member(body: dict, name: str, kind: type):
    """body[name], which is of this kind."""
    value = body.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = {str: "a string", list: "a list"}.get(kind, "a number")
        raise Refusal(f"{name} is {value!r:.40}; it must be {expected}", {name: expected})
    return value

"""What a refusal looks like: a problem document (RFC 9457) for programs, a page for people."""

from http import HTTPStatus
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from reward.collect.refusals import NotSignedIn, Refusal, TooMany, Unavailable
from reward.collect.web.pages import page
from rlhf.errors import UserError

RETRY_SECONDS = 5  # when the database is away


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(UserError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _unroutable)


def error_response(request: Request, status: int, detail: str, **extra) -> Response:
    """extra: more members of the problem document, and `headers`."""
    headers = extra.pop("headers", None)
    title, request_id = HTTPStatus(status).phrase, request.state.request_id
    if is_for_programs(request):
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        problem |= {"request_id": request_id} | extra
        return JSONResponse(problem, status, headers, "application/problem+json")
    shown = {"title": title, "detail": detail, "request_id": request_id, "fields": extra.get("fields", {})}
    return page(request, "error.html.j2", status, headers, **shown)


def is_for_programs(request: Request) -> bool:
    return request.scope["path"].startswith("/api/") or request.scope["path"] in ("/healthz", "/readyz")


def _refused(request: Request, error: UserError) -> Response:
    status = error.status if isinstance(error, Refusal) else 422
    if isinstance(error, NotSignedIn) and not is_for_programs(request):
        return _to_sign_in(request)
    extra = {"fields": error.fields} if getattr(error, "fields", None) else {}
    if getattr(error, "current", None) is not None:
        extra["current"] = error.current
    return error_response(request, status, str(error), headers=_headers(error), **extra)


def _headers(error: UserError) -> dict[str, str] | None:
    if isinstance(error, TooMany):
        return {"Retry-After": str(error.retry_after)}
    if isinstance(error, Unavailable):
        return {"Retry-After": str(RETRY_SECONDS)}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, NotSignedIn) else None


def _to_sign_in(request: Request) -> Response:
    """People go to sign in, and afterwards back to where they were, unless that was a form."""
    back = request.scope["path"] if request.method == "GET" else "/"
    return RedirectResponse(f"/sign-in?next={quote(back, safe='')}", 303)


def _malformed(request: Request, error: RequestValidationError) -> Response:
    fields = {str(one["loc"][-1]): one["msg"] for one in error.errors()}
    named = "; ".join(f"{name}: {rule}" for name, rule in fields.items())
    return error_response(request, 422, f"the request is malformed ({named})", fields=fields)


def _unroutable(request: Request, error: HTTPException) -> Response:
    detail = "There is no such page." if error.status_code == 404 else str(error.detail)
    return error_response(request, error.status_code, detail, headers=error.headers)

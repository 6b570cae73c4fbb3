"""What every request must pass, and what every response carries."""

import hmac
import ipaddress
import logging
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from reward.collect.refusals import Forbidden
from reward.collect.web.csrf_tokens import unmasked
from reward.collect.web.errors import error_response

MAX_BODY_BYTES = 2**20
MAX_STRANGER_BYTES = 2**14  # of the forms that need no account: a crowd of strangers can make the server keep little
FOR_STRANGERS = ("/sign-in", "/invite/")
TOO_LARGE = "the request has more than {} bytes; nothing of it was stored"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
log = logging.getLogger("reward.collect")
connections_log = logging.getLogger("reward.collect.web.connections")


class Frame:
    """Around the whole application: the request's id, whose host it names, the headers, and a 500 for a bug of ours."""

    def __init__(self, app: ASGIApp, origin: str | None):
        self.app, self.origin = app, origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        request.state.request_id = uuid4().hex
        started = False

        async def send_with_headers(message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _add_headers(MutableHeaders(scope=message), request, self.origin)
            await send(message)

        try:
            await (self._refusal(request) or self.app)(scope, limited(receive, max_bytes(request)), send_with_headers)
        except ClientDisconnect:
            connections_log.warning("%s left before its request was whole", request.client and request.client.host)
        except Exception:
            log.exception("request %s: %s %s failed", request.state.request_id, request.method, shown_path(request))
            if started:
                raise
            detail = "Something went wrong here, and nothing was stored. Tell the lead the number below."
            await error_response(request, 500, detail)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> ASGIApp | None:
        host = request.headers.get("host", "")
        if not is_known_host(host, self.origin):
            known = self.origin or "a loopback name, such as localhost"
            return error_response(request, 421, f"host {host[:200]!r} is not this server's; it answers to {known}")
        if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:  # no database takes it
            return error_response(request, 400, "the address contains a NUL character")
        if {"content-length", "transfer-encoding"} <= set(request.headers):  # a proxy may believe the other one
            close = {"Connection": "close"}
            return error_response(request, 400, "the request states its length in two ways", headers=close)
        if int(request.headers.get("content-length", "0")) > max_bytes(request):
            return error_response(request, 413, TOO_LARGE.format(max_bytes(request)))
        return None


def max_bytes(request: Request) -> int:
    """Of a request's body. The others' bodies are read only once it is known who sends them."""
    return MAX_STRANGER_BYTES if request.scope["path"].startswith(FOR_STRANGERS) else MAX_BODY_BYTES


def limited(receive: Receive, max_bytes: int) -> Receive:
    """receive(), which fails once the body is too large: its length need not be stated."""
    num_bytes = 0

    async def counted():
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise HTTPException(413, TOO_LARGE.format(max_bytes))
        return message

    return counted


def shown_path(request: Request) -> str:
    """The path for a log, without the secret of an invite link."""
    path = request.scope["path"]
    return "/invite/..." if path.startswith("/invite/") else path


def is_known_host(host: str, origin: str | None) -> bool:
    """Whether a Host header names this server: a foreign name that resolves to us (DNS rebinding) does not."""
    return is_loopback(_hostname(host)) or (origin is not None and host.lower() == urlsplit(origin).netloc)


def is_loopback(hostname: str) -> bool:
    try:
        return hostname == "localhost" or ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _add_headers(headers: MutableHeaders, request: Request, origin: str | None) -> None:
    headers["X-Request-Id"] = request.state.request_id
    headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cache-Control"] = "no-cache" if request.scope["path"].startswith("/static/") else "no-store"
    if origin is not None:
        headers["Strict-Transport-Security"] = "max-age=31536000"


def require_same_origin(headers: Headers, scheme: str, origin: str | None) -> None:
    """Raises Forbidden for a request that a foreign site made, or that does not say where it comes from.

    Browsers send Sec-Fetch-Site where the connection is trustworthy, and `Origin: null` with our Referrer-Policy.
    """
    site, stated = headers.get("sec-fetch-site"), headers.get("origin")
    host = headers.get("host", "")
    own = {origin} | ({f"{scheme}://{host}"} if is_loopback(_hostname(host)) else set())
    said_by_site = site in ("same-origin", "none") and stated in (None, "null")
    said_by_origin = site in (None, "same-origin", "none") and stated is not None and stated in own
    if not (said_by_site or said_by_origin):
        raise Forbidden(f"this request comes from another site (Origin {stated!r}, Sec-Fetch-Site {site!r})")


def require_csrf_token(given: str | None, expected: str) -> None:
    if not hmac.compare_digest(unmasked(given or ""), expected.encode()):
        raise Forbidden("This page is out of date. Go back, reload it and send it again.")

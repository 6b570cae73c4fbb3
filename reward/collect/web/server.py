"""The running server. On this machine alone unless told otherwise; beyond it only encrypted and with an account."""

import logging
import signal
import socket
import ssl
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from reward.collect.defaults import DEFAULT_FOLDER, naming
from reward.collect.home import origin_of
from reward.collect.people import accounts
from reward.collect.store.clock import SteadyClock, behind, newest_time
from reward.collect.store.collection import collection_of
from reward.collect.store.database import Database
from reward.collect.web.app import create_app
from reward.collect.web.connections import AT_ONCE, LIMITS, Door, Limits, Server, require_files, spare_memory
from reward.collect.web.security import is_loopback
from reward.collect.web.sparse_log import Sparse
from rlhf.errors import UserError

ALL_FROM_HERE = (
    "warning: --origin without --tls-cert says that a proxy is in front, and without --behind-proxy all who come by it "
    "count as one address, so that the failed sign-ins of one shut out all; add --behind-proxy"
)
DRAIN_SECONDS = 20  # that requests under way have after SIGTERM


def serve(
    database_url: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    folder: Path = DEFAULT_FOLDER,
    origin: str | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    behind_proxy: bool = False,
    limits: Limits = LIMITS,
) -> None:
    """Serves a collection until SIGTERM or Ctrl-C, then ends the requests under way and returns.

    origin: https://NAME[:PORT] by which people reach it. tls_cert, tls_key: PEM files. behind_proxy: a proxy in front
    does the encryption. folder: where versions are written. Raises UserError for what would be unsafe.
    """
    origin = require_safe(host, origin, tls_cert, tls_key, behind_proxy)
    require_files(limits)
    is_proxied = origin is not None and tls_cert is None
    database = Database(database_url)
    database.require_schema()
    has_account = _has_account(database)
    if not has_account and not is_loopback(host):
        raise UserError(
            f"host {host} is reached by others and nobody has an account yet; "
            f"serve it on 127.0.0.1 first, and there {_how_to_invite(folder)}"
        )
    with Door(_bound(host, port), limits) as door:
        own = f"{'https' if tls_cert else 'http'}://{_shown(host)}:{door.getsockname()[1]}"
        origin = origin or (own if tls_cert else None)
        clock = _clock_of(database)
        app = create_app(database, folder=folder, origin=origin, behind_proxy=behind_proxy, now=clock)
        with database.write() as session:
            printed, collection_of(session).origin = origin_of(session), origin or own  # where links begin
        print(f"Collecting rankings at {origin or own} (Ctrl-C stops)", flush=True)
        if not has_account:
            print(f"Nobody has an account yet; {_how_to_invite(folder)}", flush=True)
            if printed != (origin or own):
                print(f"(with {origin or own} in place of {printed} where a link begins with that)", flush=True)
        if is_proxied and not behind_proxy:
            print(ALL_FROM_HERE, file=sys.stderr, flush=True)
        _run(app, door, tls_cert, tls_key)
    database.close()


def _clock_of(database: Database) -> SteadyClock:
    with database.read() as session:
        last = newest_time(session)
    if warning := behind(last, time.time()):
        print(warning, file=sys.stderr, flush=True)
    return SteadyClock(last)


def require_safe(
    host: str, origin: str | None, tls_cert: Path | None, tls_key: Path | None, behind_proxy: bool
) -> str | None:
    """The origin as browsers write it. Raises UserError unless passwords travel encrypted, or not at all."""
    origin = origin and _normal_origin(origin)
    if (tls_cert is None) != (tls_key is None):
        raise UserError("tls_cert and tls_key belong together; give both or none")
    if tls_cert is not None:
        _require_certificate(tls_cert, tls_key)
    if is_loopback(host):
        return origin
    if tls_cert is None and not behind_proxy:
        raise UserError(
            f"host {host} is reached by others, and passwords would travel in the clear; give --tls-cert and --tls-key "
            "(or --behind-proxy where a proxy encrypts), or stay on 127.0.0.1 and use an SSH tunnel"
        )
    if origin is None:
        raise UserError(f"host {host} is reached by others; say by which name: --origin https://NAME")
    return origin


def _normal_origin(origin: str) -> str:
    try:
        parts = urlsplit(origin)
        is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
        is_origin = parts.scheme == "https" and parts.hostname and is_bare and parts.port != 0
    except ValueError:  # of brackets, or of a port that is none
        is_origin = False
    if not is_origin:
        raise UserError(f"origin {origin!r}: must be https://NAME or https://NAME:PORT and nothing else")
    return f"https://{parts.netloc.lower().removesuffix(':443')}"


def _require_certificate(tls_cert: Path, tls_key: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls_cert, tls_key, password="")
    except OSError as error:  # SSLError is one
        raise UserError(f"tls_cert {tls_cert}, tls_key {tls_key}: cannot be used ({error})") from None


def _has_account(database: Database) -> bool:
    with database.read() as session:
        return accounts.has_account(session)


def _how_to_invite(folder: Path) -> str:
    command = f"python -m reward.collect invite --role lead{naming(folder)}"
    return f"open the link that init printed, or make another: {command}"


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=AT_ONCE)
    except OverflowError:
        raise UserError(f"port {port}: must be 0 to 65535") from None
    except OSError as error:
        why = error.strerror.partition(" (while")[0]
        raise UserError(f"cannot listen on {host}, port {port} ({why}); choose another with --port") from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _run(app, door: Door, tls_cert: Path | None, tls_key: Path | None) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("reward.collect.web.connections", "uvicorn.error", "asyncio"):  # what strangers can make it write
        logging.getLogger(name).addFilter(Sparse())
    spare_memory()
    server = Server(
        app,
        door,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        log_config=None,
        access_log=False,  # it would hold the secrets of invite links
        server_header=False,
        proxy_headers=False,  # see dependencies.address
        lifespan="off",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    # Once it has drained, uvicorn raises the signal again, for the handler that it found: to be stopped is no failure.
    found = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[door])
    finally:
        for one, handler in found.items():
            signal.signal(one, handler)

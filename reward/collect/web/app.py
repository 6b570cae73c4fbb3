"""The application: routes, their guard, static files, and what an error looks like."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles

from reward.collect.figures.kept import KeptFigures
from reward.collect.home import fingerprint
from reward.collect.store.collection import collection_of
from reward.collect.store.database import Database
from reward.collect.web import account_pages, api, health, lead_accounts, lead_pages, own_account, rank_pages
from reward.collect.web.dependencies import guard
from reward.collect.web.errors import add_error_handlers
from reward.collect.web.pages import FOLDER
from reward.collect.web.security import Frame

PASSWORDS_AT_ONCE = 2  # checked: each takes 19 MiB and a core


def create_app(
    database: Database,
    *,
    folder: Path = Path("outputs/collect"),
    origin: str | None = None,
    behind_proxy: bool = False,
    now: Callable[[], float] = time.time,
) -> FastAPI:
    """The application over an open database.

    folder: where versions are written. origin: https://HOST[:PORT] where people reach it beyond loopback, else None.
    behind_proxy: the client's address is the last one in X-Forwarded-For.
    """
    app = FastAPI(
        openapi_url=None,  # no documentation of the API for strangers
        redirect_slashes=False,
        middleware=[Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5), Middleware(Frame, origin=origin)],
    )
    app.state.database, app.state.folder, app.state.now = database, Path(folder), now
    app.state.figures = KeptFigures(database, now)
    with database.read() as session:
        app.state.name, app.state.mark = collection_of(session).name, fingerprint(session)[:8]
    app.state.origin, app.state.behind_proxy = origin, behind_proxy
    app.state.readiness = health.Readiness(database)
    app.state.password_turns = asyncio.Semaphore(PASSWORDS_AT_ONCE)
    add_error_handlers(app)
    app.include_router(health.router)
    for pages in (account_pages, own_account, api, rank_pages, lead_pages, lead_accounts):
        app.include_router(pages.router, dependencies=[Depends(guard)])
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    return app

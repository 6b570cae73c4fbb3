"""Browsers and scripts for the tests of the web application, without a network."""

import re

from starlette.testclient import TestClient

from reward.collect.home import fingerprint
from reward.collect.people import accounts, tokens
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotator
from reward.collect.web.app import create_app

LOCAL = "http://localhost:8000"
NOW = 1000.0
PASSWORD = "correct horse battery"
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin", "Origin": "null"}  # as Chrome sends a form under no-referrer


def client(database: Database, base_url: str = LOCAL, headers: dict | None = None, **options) -> TestClient:
    """A browser that follows no redirects, at the time NOW. options: of create_app()."""
    app = create_app(database, **{"now": lambda: NOW} | options)
    as_sent = {"follow_redirects": False, "raise_server_exceptions": False}
    return TestClient(app, base_url, headers=headers or SAME_ORIGIN, **as_sent)


def join(database: Database, handle: str, role: str = "annotator", now: float = NOW) -> Annotator:
    with database.write() as session:
        secret = accounts.create_invite(session, role, 7, "command line", now)
        return accounts.accept_invite(session, secret, handle, PASSWORD, now)


def sign_in(browser: TestClient, handle: str, password: str = PASSWORD):
    return browser.post("/sign-in", data={"handle": handle, "password": password})


def browser_of(database: Database, handle: str, role: str = "annotator", **options) -> TestClient:
    """A browser in which a new person is signed in, and which sends their CSRF token."""
    join(database, handle, role)
    browser = client(database, **options)
    assert sign_in(browser, handle).status_code == 303
    browser.headers["X-CSRF-Token"] = csrf_token(browser)
    return browser


def session_cookie(database: Database) -> str:
    """The name of the cookie by which a browser is signed in, on plain http."""
    with database.read() as session:
        return f"session-{fingerprint(session)[:8]}"


def csrf_token(browser: TestClient) -> str:
    """The token in the page that this browser sees."""
    page = browser.get("/invite/none")  # refused, on a page that has the button to sign out
    return re.search(r'name="csrf_token" value="([^"]+)"', page.text).group(1)


def script_of(database: Database, person: Annotator, *scopes: str, now: float = NOW, **options) -> TestClient:
    """A script with a new token of this person."""
    with database.write() as session:
        secret, _ = tokens.create_token(session, person, list(scopes), 1, now)
    return client(database, headers={"Authorization": f"Bearer {secret}"}, **options)

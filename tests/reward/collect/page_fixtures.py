"""Browsers at the application, for the tests of its pages."""

import shutil
from types import SimpleNamespace

import pytest
from browsers import session_cookie as cookie_name
from collect_world import add_new_items
from page_driver import Clock, served, session_cookie

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """visit(database): a world in which .page("ann", width=320) is a browser of a new person at the next item.

    At the end, no page may have shown a dialog, reached for another host, or raised an error.
    """
    opened, faults = [], []

    def world(database):
        clock = Clock()
        serving = served(database, clock)
        url = serving.__enter__()
        opened.append(lambda: serving.__exit__(None, None, None))

        def page(handle: str, path: str = "/rank", width: int = 1280, **options):
            options = {"reduced_motion": "reduce", "viewport": {"width": width, "height": 900}} | options
            context = chromium.new_context(**options)
            opened.insert(0, context.close)
            context.set_default_timeout(60_000)  # milliseconds, far more than a busy machine needs
            context.on("request", lambda request: request.url.startswith(url) or faults.append(request.url))
            context.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
            context.on("weberror", lambda error: faults.append(str(error.error)))
            context.add_cookies(
                [{"name": cookie_name(database), "value": session_cookie(database, handle, clock()), "url": url}]
            )
            tab = context.new_page()
            tab.goto(url + path)
            return tab

        return SimpleNamespace(url=url, clock=clock, page=page)

    yield world
    for close in opened:
        close()
    assert faults == []


@pytest.fixture
def collection(make_collection, tmp_path):
    """collection(overlap=2): on SQLite, with two items of four answers."""

    def make(num_items: int = 2, **settings):
        database = make_collection(f"sqlite:///{tmp_path}/collect.db", **settings)
        add_new_items(database, num_items, k=4)
        return database

    return make

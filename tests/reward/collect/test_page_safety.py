"""The annotators' pages are inert whatever is in them, usable by everybody, and fit a small screen."""

import pytest
from page_driver import WAYS, add_texts, choose, stored, submit

from reward.collect.store.tables import Guidelines

pytest_plugins = ["page_fixtures"]

ATTACKS = (
    "<script>window.pwned = 1; alert(1)</script>",
    "<img src=x onerror=alert(1)><svg onload=alert(1)>",
    "![pixel](http://evil.test/a.png) [link](javascript:alert(1)) <http://evil.test/>",
    "</script><script>alert(1)</script><!--",
    '"><iframe src="http://evil.test/"></iframe><style>@import "http://evil.test/s.css"</style>',
    "{{ 7 * 7 }}${alert(1)}<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "[r]: http://evil.test/r.png\n\n![x][r]\n\n<base href=http://evil.test/>",
)
LONG = "# Tides\n\n" + "The sea comes and goes. " * 200 + "\n\n|a|b|\n|-|-|\n|1|2|\n\n```\n" + "code" * 90 + "\n```"


@pytest.fixture
def rich(collection):
    """A collection with long and foreign text, criteria, a required comment, and a ranking in the history."""
    database = collection(0, criteria=("helpful", "true"), require_comment=True)
    for n in range(3):
        add_texts(database, f"Why {n}? " + "word" * 60, [LONG, "short", "\u0627\u0644\u0628\u062d\u0631", "x" * 300])
    return database


def paths(page) -> list[str]:
    """Every page for annotators, with a ranking in the history."""
    edit = page.locator("main a[href^='/history/']").first.get_attribute("href")
    return ["/rank", "/history", edit, "/guidelines", "/help"]


def with_history(world, handle: str, **options):
    page = world.page(handle, **options)
    WAYS["select"](page)
    page.get_by_label("What decided").fill("because")
    submit(page)
    stored(page)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_scans_find_nothing_serious(rich, visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    world = visit(rich)
    page = with_history(world, "ann", color_scheme=scheme)
    for path in paths(page):
        page.goto(world.url + path)
        if path == "/rank":
            WAYS["select"](page)
            page.locator("#flag summary").click()
        assert serious(axe.run(page)) == [], path
    stranger = world.page("bob", "/sign-in", color_scheme=scheme)
    stranger.context.clear_cookies()
    stranger.goto(world.url + "/sign-in")
    assert serious(axe.run(stranger)) == []


def serious(results) -> list[str]:
    found = [one for one in results.response["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['target']}" for one in found for node in one["nodes"]]


def test_nothing_scrolls_sideways_at_320_pixels(rich, visit):
    world = visit(rich)
    page = with_history(world, "ann", width=320)
    for path in paths(page):
        page.goto(world.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") == 320, path
        for toggle in ("Side by side", "Raw text") if path == "/rank" else ():
            page.get_by_role("button", name=toggle).click()
            assert page.evaluate("document.documentElement.scrollWidth") == 320, toggle


def test_text_that_attacks_is_shown_and_does_nothing(collection, visit):
    """The `visit` fixture fails for a dialog, an error, or a request that leaves the host."""
    database = collection(0, require_comment=True)
    add_texts(database, "\n\n".join(ATTACKS), list(ATTACKS))
    with database.write() as session:
        session.add(Guidelines(version=2, text="\n\n".join(ATTACKS), created_at=1.0))
    world = visit(database)
    page = world.page(f"ann {ATTACKS[0]}")
    assert page.get_by_text("<script>window.pwned").count() > 0
    page.get_by_role("button", name="Raw text").click()
    for place, letter in enumerate("ABCDEFG", 1):
        choose(page, letter, str(place))
    page.get_by_label("What decided").fill(" ".join(ATTACKS))
    page.reload()
    submit(page)
    edit = page.get_by_role("link", name="Change it").get_attribute("href")
    for path in ("/history", edit, "/guidelines"):
        page.goto(world.url + path)
        assert page.evaluate("window.pwned") is None
        assert (
            page.locator("main :is(script:not([src], [type='application/json']), iframe, img, base, object)").count()
            == 0
        )


def test_an_item_gives_away_neither_its_kind_nor_who_wrote_the_responses(collection, visit):
    page = visit(collection()).page("ann")
    assert not any(word in page.content() for word in ("policy", "gold", "repeat", "file:0"))

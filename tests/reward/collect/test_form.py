"""The page as its HTML says it, and its form, as a browser without JavaScript sends it."""

import re

import pytest
from browsers import NOW, browser_of
from collect_world import add_new_items
from sqlalchemy import select

from reward.collect.store.tables import Annotation, Draft, Guidelines

LEASE = 1800  # seconds, of the default settings


class Form:
    """What somebody's page shows, and what they choose in it."""

    def __init__(self, browser):
        page = browser.get("/rank").text
        self.browser = browser
        self.url = re.search(r'action="(/rank/[^"]+)"', page).group(1)
        self.key = re.search(r'name="key" value="([^"]+)"', page).group(1)
        self.responses = re.findall(r'<select name="place-([^"]+)"', page)

    def submit(self, *places: str, **said):
        chosen = {f"place-{one}": place for one, place in zip(self.responses, places, strict=True)}
        return self.browser.post(self.url, data={"action": "submit", "key": self.key} | chosen | said)


@pytest.fixture
def database_url(tmp_path):
    """SQLite alone: what the form stores is tested on both databases in test_queue.py and test_annotations.py."""
    return f"sqlite:///{tmp_path}/collect.db"


@pytest.fixture
def clock():
    return [NOW]


@pytest.fixture
def visit(database, clock):
    """visit(handle): the browser of a new person; there is one item of three answers."""
    add_new_items(database, 1, now=NOW)
    return lambda handle: browser_of(database, handle, now=lambda: clock[0])


def rows(database, table) -> list:
    with database.read() as session:
        return list(session.scalars(select(table)))


def test_what_came_too_late_is_kept_as_a_draft(database, visit, clock):
    ann, bob = visit("ann"), visit("bob")
    form = Form(ann)
    clock[0] = NOW + LEASE + 1
    assert Form(bob).responses  # the item is bob's now
    late = form.submit("2", "1", "unacceptable", comment="worked on this for long")
    assert late.status_code == 409 and "what you entered is kept" in late.text
    (draft,) = rows(database, Draft)
    assert draft.payload["ranks"] == {form.responses[0]: 2, form.responses[1]: 1, form.responses[2]: None}
    assert draft.payload["unacceptable"] == [form.responses[2]]
    assert draft.payload["comment"] == "worked on this for long"
    assert rows(database, Annotation) == []


def test_the_time_that_it_took_is_counted_from_the_first_look(database, visit, clock):
    form = Form(visit("ann"))
    clock[0] = NOW + 90
    assert form.submit("1", "2", "2").status_code == 303
    assert rows(database, Annotation)[0].active_seconds == 90.0


@pytest.mark.parametrize("place", ["9" * 5000, "1.5", "one"])
def test_a_place_that_is_no_number_is_no_place(database, visit, place):
    refused = Form(visit("ann")).submit("1", "2", place)
    assert refused.status_code == 422 and "no rank yet" in refused.text
    assert rows(database, Annotation) == []


# What the page says


def page_of(browser, path: str = "/rank") -> str:
    return " ".join(browser.get(path).text.split())


def guidelines_panel(browser) -> str:
    return re.search(r'<details class="panel" id="guidelines".*?</details>', page_of(browser)).group()


def publish(database, version: int, text: str) -> None:
    with database.write() as session:
        session.merge(Guidelines(version=version, text=text, created_at=NOW))


def test_progress_tells_what_is_done_from_what_is_left_in_the_queue(visit):
    ann = visit("ann")
    assert "0 done, 1 left in the queue" in page_of(ann)


def test_each_criterion_says_which_end_is_good(make_collection, tmp_path):
    database = make_collection(f"sqlite:///{tmp_path}/collect.db", criteria=("truth",))
    add_new_items(database, 1, now=NOW)
    page = page_of(browser_of(database, "ann"))
    assert page.count("</span>truth (1 poor, 5 good)</legend>") == 3
    assert (
        re.findall(r'name="rating-[^"]+" value="(\d)" aria-label="([^"]+)"', page)
        == [("1", "1, poor"), ("5", "5, good")] * 3
    )


def test_where_there_are_no_guidelines_nothing_points_to_them(database, visit):
    ann = visit("ann")
    assert all('href="/guidelines"' in page_of(ann, path) for path in ("/rank", "/help"))
    publish(database, 1, "\n")
    assert "Guidelines" not in page_of(ann)
    assert "guidelines" not in page_of(ann, "/help")


def test_newer_guidelines_are_open_and_told_until_the_next_ranking(database, visit):
    add_new_items(database, 2, first=1, now=NOW)
    ann = visit("ann")
    assert " open>" in guidelines_panel(ann) and "have changed" not in page_of(ann)
    Form(ann).submit("1", "2", "3")
    assert " open>" not in guidelines_panel(ann)
    publish(database, 2, "Prefer the kind answer.")
    assert " open>" in guidelines_panel(ann) and "The guidelines have changed." in page_of(ann)
    Form(ann).submit("1", "2", "3")
    assert "have changed" not in page_of(ann)

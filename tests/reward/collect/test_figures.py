"""The lead's figures: of a small collection always those of now, of a large one made by another process and dated."""

import json
import re
from dataclasses import asdict

import pytest
from browsers import browser_of
from collect_world import NOW, add_ranked_items
from written_rankings import add_comparison, two_weeks

from reward.collect.figures.kept import KeptFigures, figures_made_elsewhere, make_figures
from reward.collect.figures.quality import agreement_report, annotator_report
from reward.collect.store import audit
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotator

pytestmark = pytest.mark.slow  # a process for each computation

ALL_ARE_LARGE = -1


@pytest.fixture
def kept(database):
    """Of a collection that counts as large."""
    return KeptFigures(database, lambda: NOW, at_once=ALL_ARE_LARGE, rest=0)


def change(database):
    with database.write() as session:
        audit.append(session, "command line", "anything", "at all", now=NOW)


def test_another_process_makes_the_very_figures(database):
    with database.write() as session:
        two_weeks(session, num_items=30)
    made, problem = figures_made_elsewhere(database, NOW)
    with database.read() as session:
        direct = {"agreement": agreement_report(session), "annotators": annotator_report(session)}
    assert problem == ""
    assert {name: getattr(made, name) for name in direct} == json.loads(json.dumps(direct))
    assert asdict(made) == json.loads(json.dumps(asdict(make_figures(database, NOW))))


def test_figures_of_a_small_collection_are_those_of_now(database):
    kept = KeptFigures(database, lambda: NOW)
    assert kept.latest().figures.num_rankings == 0
    add_ranked_items(database, 2)
    known = kept.latest()
    assert (known.figures.num_rankings, known.is_current) == (2, True)


def test_figures_of_a_large_collection_come_later_and_stand_until_there_are_newer_ones(database, kept):
    assert kept.latest().figures is None
    kept.wait()
    assert (kept.latest().figures.num_rankings, kept.latest().is_current) == (0, True)
    add_ranked_items(database, 2)
    known = kept.latest()
    assert (known.figures.num_rankings, known.is_current) == (0, False)
    kept.wait()
    assert (kept.latest().figures.num_rankings, kept.latest().is_current) == (2, True)


def test_looking_again_without_a_change_makes_no_new_figures(database, kept):
    kept.latest()
    kept.wait()
    first = kept.latest().figures
    kept.wait()
    assert kept.latest().figures is first
    change(database)
    kept.latest()
    kept.wait()
    assert kept.latest().figures is not first


def test_why_there_are_no_figures_is_told_in_a_line(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    made, problem = figures_made_elsewhere(database, NOW)
    assert made is None
    assert problem == "the database does not answer (no such table: audit). Nothing was stored; try again"
    database.close()


# -- pages --


@pytest.fixture
def lead(make_collection, tmp_path):
    """The browser of the lead of a collection that counts as large; its `database`."""
    database = make_collection(f"sqlite:///{tmp_path}/collect.db")
    lead = browser_of(database, "lena", "lead", folder=tmp_path, now=lambda: NOW)
    lead.app.state.figures = KeptFigures(database, lambda: NOW, at_once=ALL_ARE_LARGE, rest=0)
    lead.database = database
    return lead


def shown_as_of(page):
    return re.search(r'data-testid="as-of">(.*?)</p>', page.text).group(1)


@pytest.mark.parametrize("path", ["quality", "annotators", "comparison"])
def test_a_page_without_figures_yet_asks_again_by_itself_and_then_says_of_when_they_are(lead, path):
    waiting = lead.get(f"/lead/{path}")
    assert (waiting.status_code, waiting.headers["Refresh"]) == (200, "3")
    assert "are being made" in waiting.text
    lead.app.state.figures.wait()
    page = lead.get(f"/lead/{path}")
    assert "Refresh" not in page.headers
    assert shown_as_of(page) == "As of 1970-01-12 13:46 UTC, 0 rankings."
    change(lead.database)
    assert "newer figures follow" in shown_as_of(lead.get(f"/lead/{path}"))
    lead.app.state.figures.wait()


def test_who_was_paused_is_shown_so_at_once(lead):
    add_ranked_items(lead.database, 2)
    lead.get("/lead/annotators")
    lead.app.state.figures.wait()
    with lead.database.read() as session:
        ann = session.query(Annotator).filter_by(handle="ann").one()
    assert lead.post(f"/lead/annotators/{ann.id}/status", data={"status": "paused"}).status_code == 303
    page = lead.get("/lead/annotators")
    assert "Resume" in page.text and "newer figures" in shown_as_of(page)
    lead.app.state.figures.wait()


def test_a_script_is_told_to_ask_again_and_then_of_when_the_figures_are(lead):
    asked = lead.get("/api/v1/agreement")
    assert (asked.status_code, asked.headers["Retry-After"]) == (503, "5")
    lead.app.state.figures.wait()
    for path in ("agreement", "annotators"):
        report = lead.get(f"/api/v1/{path}").json()
        assert (report["made_at"], report["is_current"]) == (NOW, True)


def test_comparisons_are_among_the_figures(lead):
    with lead.database.write() as session:
        add_comparison(session, "ppo or sft", [("same", "same"), ("A", "B")])
    lead.get("/lead/comparison")
    lead.app.state.figures.wait()
    assert "ppo or sft" in lead.get("/lead/comparison").text


def test_between_two_computations_the_machine_is_the_annotators(database):
    kept = KeptFigures(database, lambda: NOW, at_once=ALL_ARE_LARGE, rest=1e6)
    kept.latest()
    kept.wait()
    first = kept.latest().figures
    change(database)
    for _ in range(2):
        known = kept.latest()
        kept.wait()
        assert known.figures is first and not known.is_current

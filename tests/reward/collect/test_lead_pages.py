"""The lead's pages: who may see them, what they show, and that each button does what it says."""

import html
import itertools
import json
import re
from xml.etree import ElementTree

import pytest
from browsers import browser_of
from collect_world import NOW, add_annotator
from written_rankings import DAY, add_comparison, add_item, flag, rank, skip, two_weeks

from reward.collect.figures import charts
from reward.collect.integrity.verify import require_whole
from reward.collect.ranking import review
from reward.collect.refusals import Conflict
from reward.collect.store import audit
from reward.collect.store.database import Database
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotator, Collection, Guidelines, Item, Version
from reward.collect.web import lead_pages

PAGES = ("", "/quality", "/annotators", "/comparison", "/review", "/versions", "/guidelines")
THREE = [("A.", "sft"), ("B.", "sft"), ("C.", "sft")]


def later():
    return NOW + 15 * DAY


@pytest.fixture
def database(make_collection, tmp_path):
    """On SQLite alone: what the pages read is tested on both kinds in test_quality.py and test_comparison.py."""
    return make_collection(f"sqlite:///{tmp_path}/collect.db")


@pytest.fixture
def lead(database, tmp_path):
    """The browser of a lead."""
    return browser_of(database, "lena", "lead", now=later, folder=tmp_path)


@pytest.fixture(scope="module")
def seeded_pages(tmp_path_factory):
    """The text of every page of a collection after two weeks."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('seeded')}/collect.db")
    database.upgrade()
    keys = {"seed": "00" * 16, "pseudonym_key": "11" * 16, "created_at": 0.0}
    with database.write() as session:
        settings = Settings(agreement_share=0.3).as_dict()
        session.add(Collection(id=1, name="seeded", settings=settings, **keys))
        session.add(Guidelines(version=1, text="Prefer what is true.", created_at=0.0))
        two_weeks(session, num_items=60)
    browser = browser_of(database, "lena", "lead", now=later)
    yield {path: browser.get(f"/lead{path}").text for path in PAGES}
    database.close()


def pictures_in(page):
    return re.findall(r"<svg class=\"chart\".*?</svg>", page, re.DOTALL)


# -- who --


@pytest.mark.parametrize("path", PAGES)
def test_only_a_lead_sees_them(database, path):
    annotator = browser_of(database, "ann", now=later)
    assert annotator.get(f"/lead{path}").status_code == 403


def test_an_annotator_can_press_none_of_the_buttons(database):
    annotator = browser_of(database, "ann", now=later)
    for path in ("invites", "annotators/x/status", "review/x", "versions", "guidelines"):
        assert annotator.post(f"/lead/{path}", data={}).status_code == 403


def test_a_button_without_the_page_s_token_does_nothing(lead, database):
    del lead.headers["X-CSRF-Token"]
    assert lead.post("/lead/guidelines", data={"text": "Be kind."}).status_code == 403
    with database.read() as session:
        assert session.query(Guidelines).count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES)
def test_an_empty_collection_is_shown_without_an_error(lead, path):
    assert lead.get(f"/lead{path}").status_code == 200


# -- what they show --


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES)
def test_no_page_needs_an_inline_style_or_script(seeded_pages, path):
    assert not re.search(r"<style|<script(?![^>]*src)|\sstyle=|\son\w+=", seeded_pages[path])


@pytest.mark.parametrize(("path", "number"), [("", 2), ("/quality", 3), ("/annotators", 2), ("/comparison", 4)])
def test_every_picture_is_well_formed_and_says_in_words_what_it_shows(seeded_pages, path, number):
    pictures = pictures_in(seeded_pages[path])
    assert len(pictures) == number
    for picture in pictures:
        assert len(ElementTree.fromstring(picture).get("aria-label")) > 20


def test_every_picture_has_a_table_beside_it(seeded_pages):
    for path in ("", "/quality", "/annotators", "/comparison"):
        for figure in re.findall(r"<figure.*?</figure>", seeded_pages[path], re.DOTALL):
            assert "<table" in figure


def test_a_comparison_reads_as_a_sentence_with_its_interval(seeded_pages):
    assert re.search(r"ppo beats sft in \d\d % \(95 % \d\d-\d\d\) of \d+ prompts", seeded_pages["/comparison"])


def test_who_needs_a_look_is_named_with_the_reason(seeded_pages):
    assert "guillermo" in seeded_pages["/annotators"] and "per item (median)" in seeded_pages["/annotators"]


def test_what_people_write_is_text_and_nothing_else(lead, database):
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    with database.write() as session:
        ann = add_annotator(session, "ann")
        item = add_item(session, 1, [(attack, attack), ("B.", "sft")], comparison=attack)
        skip(session, item, ann, attack)
        flag(session, item, ann, attack, attack, response=item.response_ids[0])
        rank(session, item, ann, [1, 2])
        session.add(Guidelines(version=2, text=attack, created_at=1.0))
    for path in PAGES:
        page = lead.get(f"/lead{path}").text
        assert "<script>alert" not in page and "<img" not in page
    assert html.escape("<script>alert(1)</script>") in lead.get("/lead/review").text


def test_a_report_reaches_the_lead_and_names_its_response_among_those_shown(lead, database):
    with database.write() as session:
        item, ann = add_item(session, 1, THREE), add_annotator(session, "ann")
        rank(session, item, ann, [1, 2, 3])
        flag(session, item, ann, "personal data", response=item.response_ids[1])
    overview = lead.get("/lead").text
    assert 'data-testid="reported">1<' in overview and '<a href="/lead/review">Read why' in overview
    review_page = lead.get("/lead/review").text
    assert "<strong>Reported</strong> response 2 by" in review_page
    assert re.search(r'response 2 <span class="mark-look">reported</span></p><p[^>]*>B\.</p>', review_page)
    assert review_page.count('<span class="mark-look">') == 1


def test_the_list_to_review_has_pages(lead, database, monkeypatch):
    monkeypatch.setattr(lead_pages, "MAX_REVIEWED", 2)
    with database.write() as session:
        ann = add_annotator(session, "ann")
        for number in range(5):
            skip(session, add_item(session, number, THREE), ann, f"reason {number}")
    shown = [re.findall(r"reason \d", lead.get(f"/lead/review?page={number}").text) for number in (1, 2, 3, 4)]
    assert [len(them) for them in shown] == [2, 2, 1, 0]
    assert sorted(itertools.chain(*shown)) == [f"reason {number}" for number in range(5)]
    middle = lead.get("/lead/review?page=2").text
    assert "Page 2 of 3, 5 items" in middle and 'page=1">Previous' in middle and 'page=3">Next' in middle
    assert lead.get("/lead/review?page=0").status_code == 422


def test_quality_of_nothing_says_that_nobody_has_ranked(lead, database):
    assert "Nobody has ranked yet." in lead.get("/lead/quality").text
    with database.write() as session:
        rank(session, add_item(session, 1, THREE), add_annotator(session, "ann"), [1, 2, 3])
    page = lead.get("/lead/quality").text
    assert "No item was ranked by two people yet" in page and "on the 0 items" not in page


def test_a_comparison_that_nobody_ranked_shows_no_figures(lead, database):
    with database.write() as session:
        add_comparison(session, "ppo or sft", [("same", "same"), ("A", "B")])
    page = lead.get("/lead/comparison").text
    assert re.search("nobody has ranked (ppo against sft|sft against ppo) yet", page)
    assert "on 1 items all policies gave the same answer" in page and not pictures_in(page)


# -- what they do --


def test_an_invite_link_is_shown_once_and_makes_an_account(lead, database):
    made = lead.post("/lead/invites", data={"role": "annotator", "days": "3"})
    link = re.search(r"http://localhost:8000(/invite/[\w-]+)", made.text).group(1)
    assert made.status_code == 201 and link not in lead.get("/lead").text
    lead.cookies.clear()
    assert "Make the account" in lead.get(link).text


@pytest.mark.parametrize(("role", "days"), [("admin", "3"), ("annotator", "0"), ("annotator", "soon"), ("lead", "9e9")])
def test_an_impossible_invite_is_refused_with_the_rule(lead, role, days):
    refused = lead.post("/lead/invites", data={"role": role, "days": days})
    assert refused.status_code == 422 and 'role="alert"' in refused.text


def test_pausing_somebody_and_letting_them_go_on(lead, database):
    with database.write() as session:
        ann = add_annotator(session, "ann")
        rank(session, add_item(session, 1, THREE), ann, [1, 2, 3])
    for status in ("paused", "active"):
        assert lead.post(f"/lead/annotators/{ann.id}/status", data={"status": status}).status_code == 303
        with database.read() as session:
            assert session.get(Annotator, ann.id).status == status


@pytest.mark.parametrize(("decision", "state"), [("reopen", "open"), ("cancel", "cancelled")])
def test_an_item_on_the_list_is_reopened_or_cancelled_and_the_audit_says_who(lead, database, decision, state):
    with database.write() as session:
        item = add_item(session, 1, THREE)
        skip(session, item, add_annotator(session, "ann"), "cut off")
        item.state = "review"
    assert "cut off" in lead.get("/lead/review").text
    assert lead.post(f"/lead/review/{item.id}", data={"decision": decision}).status_code == 303
    with database.read() as session:
        assert session.get(Item, item.id).state == state
        last = session.query(audit.Audit).order_by(audit.Audit.id.desc()).first()
        lena = session.query(Annotator).filter_by(handle="lena").one()
        assert (last.actor, last.before, last.after) == (lena.id, {"state": "review"}, {"state": state})
        require_whole(session)


def test_an_item_whose_turns_are_all_done_is_done_when_it_is_reopened(database):
    with database.write() as session:
        item = add_item(session, 1, THREE)
        rank(session, item, add_annotator(session, "ann"), [1, 2, 3])
        item.state = "review"
        session.flush()
        assert review.reopen(session, item.id, "lead", NOW) == "done"


def test_what_was_decided_already_is_a_conflict(database):
    with database.write() as session:
        item = add_item(session, 1, THREE)
        review.cancel(session, item.id, "lead", NOW)
        with pytest.raises(Conflict, match="the item is cancelled; somebody decided before you"):
            review.cancel(session, item.id, "other lead", NOW)


def test_an_export_is_listed_with_what_it_left_out_and_can_be_downloaded(lead, database):
    with database.write() as session:
        ann = add_annotator(session, "ann")
        rank(session, add_item(session, 1, THREE), ann, [1, 2, 2])
        rank(session, add_item(session, 2, THREE, gold_ranks=[1, 2, 3]), ann, [1, 2, 3])
    assert lead.post("/lead/versions").status_code == 303
    page = lead.get("/lead/versions").text
    assert "1 ranking of 1 item by 1 annotator" in page and "1 gold" in page
    with database.read() as session:
        assert session.get(Version, 1).manifest_sha256 in page
    link = html.unescape(re.search(r'href="(/api/v1/versions/1/export\?format=canonical)"', page).group(1))
    assert json.loads(lead.get(link).text)["ranks"] == [1, 2, 2]
    again = lead.post("/lead/versions")
    assert again.status_code == 200 and "Nothing new since version 1" in again.text
    assert "Version 2" not in again.text


def test_an_export_of_nothing_says_why(lead):
    refused = lead.post("/lead/versions")
    assert refused.status_code == 422 and "nobody has ranked yet" in refused.text


def test_saved_guidelines_are_a_new_version_and_the_old_one_stays(lead, database):
    assert lead.post("/lead/guidelines", data={"text": "Prefer the **kind** answer."}).status_code == 303
    page = lead.get("/lead/guidelines").text
    assert "Version 2, in use" in page and "<strong>kind</strong>" in page and "<em>true</em>" in page
    lead.post("/lead/guidelines", data={"text": "Prefer the **kind** answer."})
    with database.read() as session:
        assert session.query(Guidelines).count() == 2  # nothing had changed


def test_empty_guidelines_are_refused_and_what_was_typed_stays(lead):
    refused = lead.post("/lead/guidelines", data={"text": "  "})
    assert refused.status_code == 422 and "is empty" in refused.text


# -- charts --


@pytest.mark.parametrize(
    ("most", "ticks"), [(0, [0, 1]), (7, [0, 2, 4, 6, 8]), (71, [0, 20, 40, 60, 80]), (0.38, [0, 0.1, 0.2, 0.3, 0.4])]
)
def test_axes_have_round_numbers(most, ticks):
    assert charts.nice_ticks(most) == pytest.approx(ticks)


@pytest.mark.parametrize(("value", "has_percent"), [(1, False), (1.0, True)])
def test_a_single_one_is_counted_and_not_told_in_percent(value, has_percent):
    drawn = charts.columns([{"label": "05-01", "value": value, "told": "one"}], "Rankings by day.")
    assert ("100 %" in drawn) == has_percent


def test_names_in_a_chart_are_text():
    drawn = charts.bars([{"label": "<b>", "value": 1, "told": "</title><script>"}], 'a "quote"')
    assert "<b>" not in drawn and "<script>" not in drawn
    assert ElementTree.fromstring(drawn).get("aria-label") == 'a "quote"'

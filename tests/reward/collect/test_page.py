"""The ranking page in Chromium: what a person enters, by whichever way, is what the database holds."""

import json
import re

import pytest
from collect_world import add_new_items
from page_driver import (
    WAYS,
    add_texts,
    annotations_of,
    by_letter,
    choose,
    message,
    press,
    rank_by_selects,
    ranks_shown,
    state_is,
    stored,
    submit,
)
from sqlalchemy import select

from reward.collect.store.tables import Draft, Flag, Guidelines, Skip

pytest_plugins = ["page_fixtures"]

TIED = {"ranks": {"A": 2, "B": 1, "C": 2, "D": 4}, "unacceptable": ["D"]}
LONG = "The sea comes and goes. " * 200


# What is entered is what is stored


@pytest.fixture
def database_url(tmp_path):
    """SQLite alone: ways of ranking differ in what the browser sends, which both databases get alike."""
    return f"sqlite:///{tmp_path}/collect.db"


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_ranking_gives_the_same_row(database, visit, way):
    add_new_items(database, 1, k=4)
    options = {"has_touch": True, "width": 390} if way == "touch" else {}
    page = visit(database).page("ann", **options)
    WAYS[way](page)
    entered = json.loads(page.get_by_test_id("ranks").input_value())
    submit(page)
    assert stored(page).startswith("Stored: B > A = C; unacceptable: D")
    (annotation,) = annotations_of(database)
    assert by_letter(annotation) == TIED
    assert {"ranks": annotation.ranks, "unacceptable": annotation.unacceptable} == entered
    assert annotation.client["ways"] == [way]


def test_the_form_without_javascript_gives_the_same_row(collection, visit):
    database = collection()
    page = visit(database).page("ann", java_script_enabled=False)
    WAYS["select"](page)
    submit(page)
    assert stored(page).startswith("Stored: B > A = C; unacceptable: D")
    assert by_letter(annotations_of(database)[0]) == TIED


def test_what_the_form_without_javascript_cannot_store_comes_back_as_it_was_entered(collection, visit):
    database = collection()
    page = visit(database).page("ann", java_script_enabled=False)
    choose(page, "A", "2")
    submit(page)
    assert "3 of 4 responses have no rank yet" in page.get_by_test_id("error").inner_text()
    assert page.get_by_label("Rank of response A").input_value() == "2"
    assert annotations_of(database) == []


def test_a_double_click_on_submit_stores_once(collection, visit):
    database = collection(3)
    page = visit(database).page("ann")
    WAYS["select"](page)
    page.get_by_role("button", name="Submit", exact=True).dblclick()
    stored(page)
    assert len(annotations_of(database)) == 1


def test_an_unranked_response_keeps_the_ranking_from_being_submitted(collection, visit):
    database = collection()
    page = visit(database).page("ann")
    choose(page, "A", "1")
    page.keyboard.press("Control+Enter")
    assert "Not ranked yet: B, C, D" in message(page)
    assert page.evaluate("document.activeElement.dataset.testid") == "card-B"
    assert annotations_of(database) == []


def test_a_partial_ranking_is_stored_where_it_is_allowed(collection, visit):
    database = collection(allow_partial=True)
    page = visit(database).page("ann")
    choose(page, "D", "1")
    choose(page, "A", "4")
    submit(page)
    assert stored(page).startswith("Stored: D > A; not ranked: B, C")


def test_no_order_at_all_is_stored_with_its_reason_and_everything_else_with_the_ranking(collection, visit):
    database = collection(criteria=("true",))
    page = visit(database).page("ann")
    page.get_by_label("None of these can be ranked").check()
    page.get_by_label("Why", exact=True).fill("all wrong")
    page.get_by_text("Write a better response").click()
    page.get_by_label("Your own response").fill("Forty-two.")
    page.get_by_test_id("card-B").get_by_label("4", exact=True).check()
    submit(page)
    assert stored(page).startswith("Stored: none can be ranked (all wrong)")
    (annotation,) = annotations_of(database)
    assert set(annotation.ranks.values()) == {None}
    assert annotation.demonstration == "Forty-two."
    assert annotation.ratings == {"true": {annotation.display_order[1]: 4}}


def test_long_responses_are_cut_and_must_be_opened_where_reading_is_required(collection, visit):
    database = collection(0, require_read=True)
    add_texts(database, "Tides?", [LONG, "short"])
    page = visit(database).page("ann")
    choose(page, "A", "1")
    choose(page, "B", "2")
    submit(page)
    assert "before you submit" in message(page)
    page.get_by_role("button", name=re.compile("Show all of response")).click()
    submit(page)
    assert stored(page).startswith("Stored: A > B")


def test_the_page_ranks_without_guidelines_too(collection, visit):
    database = collection()
    with database.write() as session:
        session.merge(Guidelines(version=1, text="", created_at=0.0))
    page = visit(database).page("ann", width=390)
    rank_by_selects(page)
    submit(page)
    assert stored(page).startswith("Stored: B > A = C")


# Moving


def test_moves_are_announced_and_the_focus_follows_the_moved_card(collection, visit):
    page = visit(collection()).page("ann")
    for key in ("a", "1", "c", "2"):
        page.keyboard.press(key)
    assert page.get_by_test_id("announcer").inner_text() == "Response C moved to rank 2 of 4"
    page.keyboard.press("Alt+ArrowUp")
    assert page.get_by_test_id("announcer").inner_text() == "Response C moved to rank 1 of 4"
    assert page.evaluate("document.activeElement.dataset.testid") == "card-C"
    assert ranks_shown(page) == {"A": "2", "B": "", "C": "1", "D": ""}


def test_undo_goes_back_step_by_step(collection, visit):
    page = visit(collection()).page("ann")
    choose(page, "A", "1")
    press(page, "B", "Unacceptable")
    page.get_by_role("button", name="Undo").click()
    assert ranks_shown(page) == {"A": "1", "B": "", "C": "", "D": ""}
    page.get_by_test_id("card-C").focus()
    page.keyboard.press("Control+z")
    assert ranks_shown(page) == {"A": "", "B": "", "C": "", "D": ""}


def test_keys_do_nothing_while_somebody_types(collection, visit):
    page = visit(collection()).page("ann")
    page.get_by_test_id("card-A").focus()
    page.get_by_text("Comment", exact=True).click()
    page.get_by_label("What decided").press_sequentially("a1x=us?")
    assert page.get_by_label("What decided").input_value() == "a1x=us?"
    assert ranks_shown(page) == {"A": "", "B": "", "C": "", "D": ""}


# Nothing is lost


def test_a_reload_restores_the_draft_saved_or_not(collection, visit):
    database = collection()
    page = visit(database).page("ann")
    choose(page, "B", "3")
    state_is(page, "saved")
    page.get_by_text("Comment", exact=True).click()
    page.get_by_label("What decided").fill("because")
    page.reload()  # at once, before the second is over
    assert ranks_shown(page) == {"A": "", "B": "3", "C": "", "D": ""}
    assert page.get_by_label("What decided").input_value() == "because"
    state_is(page, "saved")
    with database.read() as session:
        assert session.scalars(select(Draft)).one().payload["comment"] == "because"


def test_what_is_entered_offline_is_told_kept_and_saved_later(collection, visit):
    database = collection()
    page = visit(database).page("ann")
    page.context.set_offline(True)
    WAYS["select"](page)
    state_is(page, "failed")
    submit(page)
    assert "no connection" in message(page)
    page.context.set_offline(False)
    state_is(page, "saved")
    submit(page)
    assert stored(page).startswith("Stored: B > A = C")
    assert len(annotations_of(database)) == 1


def test_of_two_tabs_the_person_chooses_which_entries_count(collection, visit):
    page = visit(collection()).page("ann")
    other = page.context.new_page()
    other.goto(page.url)
    choose(page, "A", "1")
    state_is(page, "saved")
    choose(other, "B", "1")
    other.get_by_role("button", name="The other ones").click()
    assert ranks_shown(other) == {"A": "1", "B": "", "C": "", "D": ""}


def test_a_ranking_that_comes_too_late_is_told_and_kept(collection, visit):
    database = collection(1)
    world = visit(database)
    page = world.page("ann")
    WAYS["select"](page)
    state_is(page, "saved")
    world.clock.ahead = 3600
    world.page("bob")
    submit(page)
    assert "went to somebody else" in message(page)
    with database.read() as session:
        assert session.scalars(select(Draft)).one().payload["unacceptable"]


def test_an_edit_stores_a_second_revision_and_keeps_the_first(collection, visit):
    database = collection()
    page = visit(database).page("ann")
    WAYS["select"](page)
    submit(page)
    page.get_by_role("link", name="Change it").click()
    page.wait_for_url("**/history/*")
    assert ranks_shown(page) == {"A": "2", "B": "1", "C": "2", "D": "unacceptable"}
    choose(page, "D", "4")
    page.get_by_role("button", name="Store the change").click()
    assert stored(page).startswith("Stored: B > A = C > D")
    first, second = annotations_of(database)
    assert (first.revision, second.revision) == (1, 2)
    assert by_letter(first) == TIED
    assert by_letter(second) == TIED | {"unacceptable": []}
    assert page.get_by_test_id("order").inner_text() == "B > A = C > D"


# Who gets what


def test_an_item_stays_with_whoever_is_at_work_on_it(collection, visit):
    page = visit(collection(lease_seconds=1800)).page("ann")
    page.clock.install()
    page.reload()
    page.clock.run_for(5_000)
    page.mouse.move(100, 100)
    with page.expect_response("**/renew") as renewed:
        page.clock.run_for(600_000)
    assert renewed.value.status == 200


def test_a_ranking_of_somebody_else_cannot_be_seen(collection, visit):
    database = collection()
    world = visit(database)
    page = world.page("ann")
    WAYS["select"](page)
    submit(page)
    own = page.get_by_role("link", name="Change it").get_attribute("href")
    assert page.goto(world.url + own).status == 200
    assert world.page("bob").goto(world.url + own).status == 404


def test_two_people_never_have_the_same_slot(collection, visit):
    world = visit(collection(1, overlap=2, agreement_overlap=2))
    slots = {world.page(handle).locator("#rank-form").get_attribute("action") for handle in ("ann", "bob")}
    assert len(slots) == 2
    assert world.page("cid").locator("[data-reason]").get_attribute("data-reason") == "lease_wait"


def test_skipping_and_reporting_say_why(collection, visit):
    database = collection()
    page = visit(database).page("ann")
    first = page.locator("#rank-form").get_attribute("action")
    page.get_by_test_id("card-B").focus()
    page.keyboard.press("f")
    page.get_by_label("Note for the lead").fill("names a person")
    page.get_by_role("button", name="Report", exact=True).click()
    page.locator("#flag:not([open])").wait_for()
    page.keyboard.press("s")
    page.get_by_role("button", name="Skip this item").click()
    page.wait_for_function("before => document.forms['rank-form']?.getAttribute('action') !== before", arg=first)
    with database.read() as session:
        assert session.scalars(select(Flag)).one().note == "names a person"
        assert session.scalars(select(Skip)).one().reason == "I cannot judge this"

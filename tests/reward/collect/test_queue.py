"""The queue: nobody gets an item twice, nothing is lost when people leave, and gold items look like all others."""

import dataclasses
from collections import Counter

import pytest
from collect_world import (
    NOW,
    add_annotator,
    add_new_items,
    add_people,
    do,
    hand_in,
    items_of,
    new_item,
    skip,
    take,
)
from sqlalchemy import select

from reward.collect.ranking import queue
from reward.collect.ranking.annotations import save_draft
from reward.collect.ranking.items import NewResponse, add_items
from reward.collect.ranking.queue import NoWork, Work, display_order
from reward.collect.refusals import Conflict, NotFound, Refusal
from reward.collect.store import audit
from reward.collect.store.tables import Annotator, Flag, Item, Skip, Slot

LEASE = 1800  # seconds, the default


@pytest.fixture
def collection(make_collection, database_url):
    """collection(overlap=2): a collection with these settings."""
    return lambda **settings: make_collection(database_url, **{"agreement_overlap": 50, **settings})


def slots(database) -> list[tuple]:
    with database.read() as session:
        return list(session.execute(select(Slot.state, Slot.annotator_id)))


def prompts_of(database, annotator, count, now=NOW) -> list[str]:
    """The prompts that somebody gets, one after the other, each handed in."""
    prompts = []
    for i in range(count):
        work = take(database, annotator, now + 100 * i)
        prompts.append(work.messages[0]["content"])
        hand_in(database, annotator, work, now + 100 * i + 60)
    return prompts


# Whose turn


def test_work_holds_the_prompt_and_its_answers(database):
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    work = take(database, ann)
    assert work.messages == [{"role": "user", "content": "Prompt 0?"}]
    assert sorted(text for _, text in work.responses) == ["0.0", "0.1", "0.2"]
    assert (work.lease_until, work.draft, work.draft_rev) == (NOW + LEASE, None, 0)


def test_a_reload_shows_the_same_item_and_lends_it_anew(database):
    add_new_items(database, 5)
    (ann,) = add_people(database, "ann")
    first = take(database, ann)
    assert take(database, ann, NOW + 100) == dataclasses.replace(first, lease_until=NOW + 100 + LEASE)


def test_each_gets_an_item_of_their_own(database):
    add_new_items(database, 3)
    people = add_people(database, "ann", "bob", "cy")
    assert len({take(database, person).item_id for person in people}) == 3


def test_nobody_gets_an_item_twice(collection):
    database = collection(overlap=2)
    add_new_items(database, 4)
    ann, bob = add_people(database, "ann", "bob")
    assert sorted(prompts_of(database, ann, 4)) == [f"Prompt {i}?" for i in range(4)]
    assert take(database, ann).reason == "all_done"
    assert sorted(prompts_of(database, bob, 4)) == [f"Prompt {i}?" for i in range(4)]
    assert {state for state, _ in slots(database)} == {"done"}
    assert {item.state for item in items_of(database)} == {"done"}


def test_an_item_is_open_until_all_who_should_have_ranked_it(collection):
    database = collection(overlap=2)
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    hand_in(database, ann, take(database, ann))
    assert items_of(database)[0].state == "open"
    hand_in(database, bob, take(database, bob))
    assert items_of(database)[0].state == "done"


def test_items_that_ask_for_the_very_same_answers_are_one_to_a_person(database):
    with database.write() as session:
        add_items(session, [new_item(1), new_item(1, comparison="x"), new_item(1, 4)], "command line", NOW)
    (ann,) = add_people(database, "ann")
    assert sorted(prompts_of(database, ann, 2)) == ["Prompt 1?", "Prompt 1?"]
    assert take(database, ann).reason == "all_done"


def test_items_of_high_priority_come_first(database):
    for i in range(6):
        add_new_items(database, 1, first=i, priority=float(i % 3))
    (ann,) = add_people(database, "ann")
    assert [int(prompt[7]) % 3 for prompt in prompts_of(database, ann, 6)] == [2, 2, 1, 1, 0, 0]


def test_every_item_is_ranked_once_before_any_is_ranked_twice(collection):
    database = collection(overlap=2)
    add_new_items(database, 6)
    ann, bob = add_people(database, "ann", "bob")
    first = prompts_of(database, ann, 3)
    assert sorted(first + prompts_of(database, bob, 3)) == [f"Prompt {i}?" for i in range(6)]


def test_second_opinions_of_the_agreement_share_come_among_the_first_ones(collection):
    """All items are in the share here: Bob is asked about those that Ann has ranked before those that nobody has."""
    database = collection(overlap=1, agreement_share=1.0, agreement_overlap=2)
    add_new_items(database, 8)
    ann, bob = add_people(database, "ann", "bob")
    assert prompts_of(database, ann, 4) == prompts_of(database, bob, 4)


# Leases


def test_an_item_that_somebody_left_goes_to_somebody_else_after_the_lease(database):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    left = take(database, ann)
    assert take(database, bob, NOW + LEASE).reason == "lease_wait"
    assert take(database, bob, NOW + LEASE + 1).slot_id == left.slot_id
    assert take(database, ann, NOW + LEASE + 2).reason == "lease_wait"


def test_who_comes_back_late_finds_the_item_if_nobody_took_it(database):
    add_new_items(database, 2)
    (ann,) = add_people(database, "ann")
    left = take(database, ann)
    assert take(database, ann, NOW + 10 * LEASE).slot_id == left.slot_id


def test_a_renewed_lease_lasts_from_now(database):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    work = take(database, ann)
    assert do(database, queue.renew, ann, work.slot_id, NOW + 1000) == NOW + 1000 + LEASE
    assert take(database, bob, NOW + LEASE + 1).retry_after == 999


def test_what_is_released_goes_to_anybody(database):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    work = take(database, ann)
    do(database, queue.release, ann, work.slot_id, NOW)
    assert take(database, bob).slot_id == work.slot_id


@pytest.mark.parametrize("action", [queue.renew, queue.release])
def test_what_somebody_else_holds_cannot_be_renewed_or_released(database, action):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    work = take(database, bob)
    with pytest.raises(Conflict, match="this item is not yours any more"):
        do(database, action, ann, work.slot_id, NOW)
    with pytest.raises(NotFound, match="there is no such item"):
        do(database, action, ann, "nonsense", NOW)
    hand_in(database, bob, work)
    with pytest.raises(Conflict, match="you have submitted this item already"):
        do(database, action, bob, work.slot_id, NOW)


# Skips and flags


def test_who_skipped_an_item_does_not_get_it_again_and_others_do(database):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    work = take(database, ann)
    skip(database, ann, work)
    assert take(database, ann).reason == "all_done"
    assert take(database, bob).slot_id == work.slot_id


def test_an_item_that_three_people_skipped_waits_for_the_lead(database):
    add_new_items(database, 1)
    *three, dan = add_people(database, "ann", "bob", "cy", "dan")
    for person in three:
        assert items_of(database)[0].state == "open"
        skip(database, person, take(database, person))
    assert items_of(database)[0].state == "review"
    assert take(database, dan).reason == "review"


def test_an_item_that_all_who_work_here_skipped_waits_for_the_lead(collection):
    database = collection(skips_to_review=3)
    add_new_items(database, 1)
    people = add_people(database, "ann", "bob", "cy")
    with database.write() as session:
        add_annotator(session, "lena", "lead")
        session.merge(people[2]).status = "paused"
    for person in people[:2]:
        assert items_of(database)[0].state == "open"
        skip(database, person, take(database, person))
    assert items_of(database)[0].state == "review"


def test_what_a_lead_alone_skips_waits_for_their_own_decision(collection):
    database = collection()
    add_new_items(database, 1)
    with database.write() as session:
        lead = add_annotator(session, "lena", "lead")
    skip(database, lead, take(database, lead))
    assert items_of(database)[0].state == "review"


def test_a_skip_is_kept_with_its_reason_and_audited(database):
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    skip(database, ann, take(database, ann), "It is in Dutch")
    with database.read() as session:
        assert session.scalar(select(Skip)).reason == "It is in Dutch"
        last = session.scalar(select(audit.Audit).order_by(audit.Audit.id.desc()))
        assert (last.action, last.actor, last.after) == ("skip", ann.id, {"reason": "It is in Dutch"})


@pytest.mark.parametrize("reason", ["", "  ", None, 3, "x" * 201, "a\0b"])
def test_a_skip_needs_a_reason_in_words(database, reason):
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    work = take(database, ann)
    with pytest.raises(Refusal) as refused:
        skip(database, ann, work, reason)
    assert list(refused.value.fields) == ["reason"]
    assert take(database, ann).slot_id == work.slot_id


def test_what_is_not_held_cannot_be_skipped(database):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    work = take(database, ann)
    with pytest.raises(Conflict):
        skip(database, bob, work)


def test_a_flag_is_stored_and_the_item_stays_with_who_flagged_it(database):
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    work = take(database, ann)
    response_id = work.responses[1][0]
    do(database, queue.flag, ann, work.slot_id, response_id, "private data", "a name", NOW)
    with database.read() as session:
        flag = session.scalar(select(Flag))
        assert (flag.response_id, flag.reason, flag.note) == (response_id, "private data", "a name")
        assert session.scalar(select(audit.Audit.action).order_by(audit.Audit.id.desc())) == "flag"
    assert take(database, ann).slot_id == work.slot_id
    assert items_of(database)[0].state == "open"


def test_a_flag_of_an_answer_of_another_item_is_refused(database):
    add_new_items(database, 2)
    ann, bob = add_people(database, "ann", "bob")
    work, other = take(database, ann), take(database, bob)
    with pytest.raises(Refusal, match="no such response in this item"):
        do(database, queue.flag, ann, work.slot_id, other.responses[0][0], "spam", "", NOW)
    with pytest.raises(Conflict):
        do(database, queue.flag, ann, other.slot_id, None, "spam", "", NOW)


def test_skips_and_flags_of_one_person_count_once(collection):
    database = collection(skips_to_review=2)
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    work = take(database, ann)
    for _ in range(3):
        do(database, queue.flag, ann, work.slot_id, None, "spam", "", NOW)
    skip(database, ann, work)
    assert items_of(database)[0].state == "open"
    do(database, queue.flag, bob, take(database, bob).slot_id, None, "spam", "", NOW)
    assert items_of(database)[0].state == "review"


# No work


def test_no_work_says_why(database):
    ann, bob = add_people(database, "ann", "bob")
    assert take(database, ann) == NoWork("empty", "Nothing is queued yet.")
    add_new_items(database, 1)
    work = take(database, bob, NOW - 600)
    waiting = take(database, ann)
    assert (waiting.reason, waiting.retry_after) == ("lease_wait", LEASE - 600)
    hand_in(database, bob, work)
    assert (take(database, ann).reason, take(database, ann).retry_after) == ("all_done", None)


def test_who_is_paused_gets_no_work(database):
    add_new_items(database, 2)
    (ann,) = add_people(database, "ann")
    take(database, ann)
    with database.write() as session:
        session.get(Annotator, ann.id).status = "paused"
    assert take(database, ann).reason == "paused"


def test_a_cancelled_item_is_not_handed_out(database):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    take(database, ann)
    with database.write() as session:
        session.scalar(select(Item)).state = "cancelled"
    assert [take(database, person).reason for person in (ann, bob)] == ["all_done", "all_done"]


# What one person sees


def test_the_order_of_display_differs_by_person_and_stays(collection):
    database = collection(overlap=2)
    add_new_items(database, 1, k=9)
    ann, bob = add_people(database, "ann", "bob")
    shown = [[text for _, text in take(database, person).responses] for person in (ann, bob, ann, bob)]
    assert shown[:2] == shown[2:]
    assert shown[0] != shown[1]  # by chance alone once in 9! = 362,880


def test_every_answer_is_shown_at_every_place_about_as_often():
    first = Counter(display_order("seed", str(i), "ann", ["a", "b", "c"])[0] for i in range(3000))
    assert all(abs(count - 1000) < 104 for count in first.values())  # 4 standard deviations of 25.8


@pytest.mark.slow
def test_only_who_has_an_item_sees_it(database):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    work = take(database, ann)
    assert do(database, queue.work_of, ann, work.slot_id) == work
    for slot_id in (work.slot_id, "nonsense"):
        with pytest.raises(NotFound):
            do(database, queue.work_of, bob, slot_id)


def test_who_lost_an_item_still_sees_it_with_the_draft_they_left(database):
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    work = take(database, ann)
    do(database, save_draft, ann, work.slot_id, {"comment": "so far"}, 0, NOW)
    take(database, bob, NOW + LEASE + 1)
    seen = do(database, queue.work_of, ann, work.slot_id)
    assert (seen.draft, seen.draft_rev, seen.lease_until) == ({"comment": "so far"}, 1, 0.0)
    assert seen.responses == work.responses


def test_a_draft_comes_back_with_another_turn_at_the_same_item(collection):
    database = collection(overlap=2)
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    lost = take(database, ann)
    do(database, save_draft, ann, lost.slot_id, {"comment": "so far"}, 0, NOW)
    assert take(database, bob, NOW + LEASE + 1).slot_id == lost.slot_id
    again = take(database, ann, NOW + LEASE + 2)
    assert again.slot_id != lost.slot_id
    assert (again.draft, again.draft_rev) == ({"comment": "so far"}, 0)


def test_a_lead_can_rank_too(database):
    add_new_items(database, 1)
    with database.write() as session:
        lead = add_annotator(session, "lead", "lead")
    assert isinstance(take(database, lead), Work)


def test_an_answer_with_another_source_is_the_same_to_whoever_ranks_it(database):
    with database.write() as session:
        other = dataclasses.replace(new_item(1), responses=[NewResponse(f"1.{i}", {"policy": "b"}) for i in range(3)])
        add_items(session, [new_item(1), other], "command line", NOW)
    (ann,) = add_people(database, "ann")
    assert "policy" not in repr(take(database, ann))

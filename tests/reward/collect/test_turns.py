"""Turns: when gold items and repeats come, and that nobody can tell them from other items."""

from collections import Counter

import pytest
from collect_world import NOW, add_new_items, add_people, add_ranked_items, do, hand_in, items_of, progress, skip, take
from sqlalchemy import select

from reward.collect.figures.quality import progress_report
from reward.collect.ranking import queue
from reward.collect.ranking.queue import Work
from reward.collect.store.tables import Item, Slot


@pytest.fixture
def collection(make_collection, database_url):
    """collection(overlap=2): a collection with these settings."""
    return lambda **settings: make_collection(database_url, **{"agreement_overlap": 50, **settings})


# Gold items and repeats


def kinds_of(database, annotator) -> list[str]:
    """The kinds of item that somebody gets until nothing is left, handed in a minute after another."""
    kinds, now = [], NOW
    by_id = {}
    while isinstance(work := take(database, annotator, now), Work):
        by_id |= {item.id: item.kind for item in items_of(database)} if work.item_id not in by_id else {}
        kinds.append(by_id[work.item_id])
        hand_in(database, annotator, work, now + 60)
        now += 61
    return kinds


@pytest.mark.slow
def test_gold_items_come_at_about_their_share_and_once_to_each_person(collection):
    database = collection(gold_share=0.5)
    add_new_items(database, 40)
    add_new_items(database, 60, first=100, gold_ranks=[1, 2, 3])
    (ann,) = add_people(database, "ann")
    kinds = Counter(kinds_of(database, ann))
    assert kinds["normal"] == 40
    assert 10 <= kinds["gold"] <= 60  # 40 expected: as many gold as normal ones, 6.3 * sqrt(2) either way
    with database.read() as session:
        taken = select(Slot.item_id).join(Item).where(Item.kind == "gold")
        assert max(Counter(session.scalars(taken)).values()) == 1


@pytest.mark.slow
def test_each_person_gets_the_gold_items_at_turns_of_their_own(collection):
    database = collection(gold_share=0.3, overlap=2)
    add_new_items(database, 20)
    add_new_items(database, 3, first=100, gold_ranks=[1, 2, 3])
    ann, bob = add_people(database, "ann", "bob")
    kinds = [kinds_of(database, person) for person in (ann, bob)]
    assert [Counter(each)["gold"] for each in kinds] == [3, 3]
    assert {item.state for item in items_of(database, kind="gold")} == {"open"}


def test_without_a_gold_share_no_gold_item_comes(database):
    add_new_items(database, 5)
    add_new_items(database, 5, first=100, gold_ranks=[1, 2, 3])
    (ann,) = add_people(database, "ann")
    assert kinds_of(database, ann) == ["normal"] * 5


def test_a_gold_item_is_lent_given_back_and_skipped_like_any_other(collection):
    database = collection(gold_share=0.5)
    add_new_items(database, 1, gold_ranks=[1, 2, 3])
    people = add_people(database, *[f"person {i}" for i in range(12)])  # by their ids, 2 to 10 begin with a gold item
    due = [(person, work) for person in people if isinstance(work := take(database, person), Work)]
    assert 2 <= len(due) <= 10
    (person, work), (other, others_work), *_ = due
    assert {field: type(value) for field, value in vars(work).items()} == {
        "slot_id": str,
        "item_id": str,
        "messages": list,
        "responses": list,
        "lease_until": float,
        "draft": type(None),
        "draft_rev": int,
    }
    do(database, queue.release, person, work.slot_id, NOW)
    again = take(database, person)
    assert again.item_id == work.item_id
    skip(database, person, again)
    assert not isinstance(take(database, person), Work)
    hand_in(database, other, others_work)
    assert progress(database, other)[0] == 1


@pytest.mark.slow
def test_a_repeat_is_an_item_of_some_time_ago_with_its_answers_in_another_order(collection):
    database = collection(repeat_share=0.3)
    add_new_items(database, 40, k=6)
    (ann,) = add_people(database, "ann")
    order, shown, now = [], {}, NOW
    while isinstance(work := take(database, ann, now), Work):
        order.append(work.item_id)
        shown[work.item_id] = [response_id for response_id, _ in work.responses]
        hand_in(database, ann, work, now + 60)
        now += 61
    repeats = {item.id: item.repeat_of for item in items_of(database, kind="repeat")}
    assert len(order) - len(repeats) == 40
    assert 6 <= len(repeats) <= 30  # about 0.3 / 0.7 * 40 = 17 expected
    assert len(set(repeats.values())) == len(repeats)
    for repeat, first in repeats.items():
        assert order.index(repeat) - order.index(first) > 5
        assert sorted(shown[repeat]) == sorted(shown[first])
    same_order = sum(shown[repeat] == shown[first] for repeat, first in repeats.items())
    assert same_order <= 1  # each by chance once in 720
    assert {item.state for item in items_of(database, kind="repeat")} == {"done"}


def test_what_could_not_be_ranked_is_not_repeated(collection):
    database = collection(repeat_share=0.5)
    add_new_items(database, 20)
    (ann,) = add_people(database, "ann")
    now = NOW
    while isinstance(work := take(database, ann, now), Work):
        hand_in(database, ann, work, now + 60, ranks={}, not_rankable="all are in Dutch")
        now += 61
    assert items_of(database, kind="repeat") == []


@pytest.mark.slow
def test_ids_of_repeats_look_like_other_ids(collection):
    database = collection(repeat_share=0.5)
    add_ranked_items(database, 30)
    for item in items_of(database, kind="repeat"):
        assert len(item.id) == 32 and item.id[12] == "4" and item.id[16] in "89ab"  # as uuid4 says


# Progress


def test_progress_counts_what_is_done_and_what_is_left_for_one_person(collection):
    database = collection(overlap=2)
    add_new_items(database, 3)
    ann, bob = add_people(database, "ann", "bob")
    assert progress(database, ann) == (0, 3)
    hand_in(database, ann, take(database, ann))
    assert progress(database, ann) == (1, 2)
    skip(database, ann, take(database, ann))
    assert progress(database, ann) == (1, 1)
    assert progress(database, bob) == (0, 3)


def test_an_item_that_was_cancelled_in_front_of_somebody_is_not_left_for_them(database):
    add_new_items(database, 2)
    (ann,) = add_people(database, "ann")
    held = take(database, ann)
    with database.write() as session:
        session.get_one(Item, held.item_id).state = "cancelled"
    assert progress(database, ann) == (0, 1)


def test_what_is_left_counts_down_by_one_at_gold_items_and_repeats_too(collection):
    database = collection(gold_share=0.3, repeat_share=0.2)
    add_new_items(database, 25)
    add_new_items(database, 8, first=100, gold_ranks=[1, 2, 3])
    (ann,) = add_people(database, "ann")
    _, total = progress(database, ann)
    assert total > 25
    for done in range(total):
        work = take(database, ann, NOW + 100 * done)
        assert progress(database, ann) == (done, total - done)  # also while an item is held
        hand_in(database, ann, work, NOW + 100 * done + 60)
        assert progress(database, ann) == (done + 1, total - done - 1)
    assert not isinstance(take(database, ann, NOW + 100 * total), Work)
    assert items_of(database, kind="repeat") and items_of(database, kind="gold")


def test_abandoned_gold_items_do_not_keep_the_collection_from_being_complete(collection):
    database = collection(gold_share=0.5)
    add_new_items(database, 1, gold_ranks=[1, 2, 3])
    for person in add_people(database, *[f"person {i}" for i in range(8)]):
        take(database, person)
    assert do(database, progress_report)["all_slots"] == 0

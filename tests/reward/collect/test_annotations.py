"""Annotations: what is stored is what was entered, once; nothing that was entered is lost or overwritten."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from collect_world import NOW, add_new_items, add_people, add_ranked_items, body, do, hand_in, take, texts_by_rank
from sqlalchemy import func, select

from reward.collect.integrity.verify import require_whole
from reward.collect.ranking import annotations, queue
from reward.collect.ranking.annotations import revise, save_draft, submit
from reward.collect.ranking.submissions import parse_submission
from reward.collect.refusals import Conflict, NotFound, Refusal
from reward.collect.store import audit
from reward.collect.store.tables import Annotation, Draft

LEASE = 1800  # seconds, the default


@pytest.fixture
def collection(make_collection, database_url):
    """collection(overlap=2): a collection with these settings."""
    return lambda **settings: make_collection(database_url, **{"agreement_overlap": 50, **settings})


def read(database, query):
    with database.read() as session:
        return session.scalar(query)


def count(database, table) -> int:
    return read(database, select(func.count()).select_from(table))


@pytest.fixture
def ann_at_work(database):
    """(annotator, her work on an item of three answers)."""
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    return ann, take(database, ann)


# Submissions


def test_a_refused_submission_changes_nothing(database, ann_at_work):
    ann, work = ann_at_work
    with pytest.raises(Refusal):
        hand_in(database, ann, work, ranks={})
    assert take(database, ann) == work
    assert count(database, Annotation) == 0


def test_what_is_stored_is_what_was_entered(collection):
    database = collection(criteria=("clear",), overlap=1)
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    work = take(database, ann)
    best, worst, middle = (response_id for response_id, _ in work.responses)
    said = {"ranks": {best: 1, middle: 2}, "unacceptable": [worst], "ratings": {"clear": {best: 5}}}
    said |= {"comment": "line 1\r\nline 2", "demonstration": "Better.", "client": {"input": "keys"}}
    submission = parse_submission(said | {"active_seconds": 12.5})
    made = do(database, submit, ann, work.slot_id, submission, "key 1", NOW + 60)
    stored = read(database, select(Annotation))
    assert stored.id == made.id
    assert stored.ranks == {best: 1, middle: 2, worst: 3}
    assert (stored.unacceptable, stored.not_rankable, stored.ratings) == ([worst], None, {"clear": {best: 5}})
    assert (stored.comment, stored.demonstration) == ("line 1\nline 2", "Better.")
    assert stored.display_order == [best, worst, middle]
    assert (stored.started_at, stored.submitted_at, stored.active_seconds) == (NOW, NOW + 60, 12.5)
    assert (stored.guidelines_version, stored.revision, stored.client) == (1, 1, {"input": "keys"})


def test_what_could_not_be_ranked_has_no_ranks(database, ann_at_work):
    ann, work = ann_at_work
    stored = hand_in(database, ann, work, ranks={}, not_rankable=" all are in Dutch ")
    assert stored.not_rankable == "all are in Dutch"
    assert set(stored.ranks.values()) == {None}


def test_nobody_was_active_for_longer_than_they_had_the_item(database, ann_at_work):
    ann, work = ann_at_work
    assert hand_in(database, ann, work, now=NOW + 60, active_seconds=1000).active_seconds == 60


def test_a_submission_that_is_sent_again_is_stored_once(database, ann_at_work):
    ann, work = ann_at_work
    first = hand_in(database, ann, work, key="key 1", active_seconds=10)
    again = hand_in(database, ann, work, key="key 1", now=NOW + 3 * LEASE, active_seconds=11)
    assert again.id == first.id
    assert count(database, Annotation) == 1


def test_a_key_that_comes_with_another_submission_is_refused(database, ann_at_work):
    ann, work = ann_at_work
    hand_in(database, ann, work, key="key 1")
    with pytest.raises(Refusal, match="Idempotency-Key was used for another submission"):
        hand_in(database, ann, work, key="key 1", comment="another")
    assert read(database, select(Annotation.comment)) == ""


def test_a_key_of_somebody_else_is_refused(collection):
    database = collection(overlap=2)
    add_new_items(database, 1)
    ann, bob = add_people(database, "ann", "bob")
    hand_in(database, ann, take(database, ann), key="key 1")
    with pytest.raises(Refusal, match="Idempotency-Key was used for another submission"):
        hand_in(database, bob, take(database, bob), key="key 1")


@pytest.mark.parametrize("key", ["", "x" * 201, "a\0", None])
def test_a_submission_needs_a_key(database, ann_at_work, key):
    ann, work = ann_at_work
    submission = parse_submission(body(work))
    with pytest.raises(Refusal, match="Idempotency-Key must have 1 to 200 characters"):
        do(database, submit, ann, work.slot_id, submission, key, NOW)


def test_the_same_submission_many_times_at_once_is_stored_once(database, ann_at_work):
    ann, work = ann_at_work
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: hand_in(database, ann, work, key="key 1").id, range(8)))
    assert len(set(made)) == 1
    assert count(database, Annotation) == 1


@pytest.mark.slow
def test_two_tabs_that_submit_different_rankings_store_one_and_say_so(database, ann_at_work):
    ann, work = ann_at_work
    hand_in(database, ann, work)
    with pytest.raises(Conflict, match="you have submitted this item already"):
        hand_in(database, ann, work, comment="another")
    assert (count(database, Annotation), count(database, Draft)) == (1, 0)


def test_a_late_submission_is_accepted_if_nobody_took_the_item(database, ann_at_work):
    ann, work = ann_at_work
    assert hand_in(database, ann, work, now=NOW + 10 * LEASE).revision == 1


def test_a_late_submission_of_an_item_that_somebody_took_is_kept_as_a_draft(database, ann_at_work):
    ann, work = ann_at_work
    (bob,) = add_people(database, "bob")
    theirs = take(database, bob, NOW + LEASE + 1)
    with pytest.raises(Conflict, match="it went to somebody else; what you entered is kept") as refused:
        hand_in(database, ann, work, now=NOW + LEASE + 2, comment="my thoughts")
    draft = read(database, select(Draft))
    assert (draft.annotator_id, draft.payload["comment"]) == (ann.id, "my thoughts")
    assert draft.payload["ranks"] == body(work)["ranks"]
    assert refused.value.current == {"rev": draft.rev, "payload": draft.payload}
    assert take(database, bob, NOW + LEASE + 3).draft is None  # hers, not his
    assert hand_in(database, bob, theirs, now=NOW + LEASE + 4).annotator_id == bob.id
    assert count(database, Annotation) == 1


def test_a_late_submission_replaces_the_draft_that_was_there(database, ann_at_work):
    ann, work = ann_at_work
    (bob,) = add_people(database, "bob")
    do(database, save_draft, ann, work.slot_id, {"comment": "so far"}, 0, NOW)
    take(database, bob, NOW + LEASE + 1)
    with pytest.raises(Conflict):
        hand_in(database, ann, work, now=NOW + LEASE + 2, comment="all of it")
    draft = read(database, select(Draft))
    assert (draft.rev, draft.payload["comment"]) == (2, "all of it")


def test_what_was_never_handed_out_cannot_be_submitted(database, ann_at_work):
    ann, work = ann_at_work
    with pytest.raises(NotFound):
        do(database, submit, ann, "nonsense", parse_submission(body(work)), "key", NOW)


def test_a_submission_is_audited(database, ann_at_work):
    ann, work = ann_at_work
    made = hand_in(database, ann, work)
    with database.read() as session:
        row = session.scalar(select(audit.Audit).where(audit.Audit.action == "submit"))
        assert (row.actor, row.object, row.after["revision"]) == (ann.id, made.id, 1)
        require_whole(session)


# Revisions


def test_a_revision_is_added_and_the_first_ranking_stays(database, ann_at_work):
    ann, work = ann_at_work
    first = hand_in(database, ann, work)
    turned = parse_submission({"ranks": {one: 4 - rank for one, rank in first.ranks.items()}})
    second = do(database, revise, ann, first.id, turned, "key 2", NOW + 500)
    assert second.ranks == {one: 4 - rank for one, rank in first.ranks.items()}
    assert (second.revision, second.slot_id, second.display_order) == (2, first.slot_id, first.display_order)
    assert texts_by_rank(database, first) == {"0.0": 1, "0.1": 2, "0.2": 3}
    with database.read() as session:
        assert session.get(Annotation, first.id).ranks == first.ranks
        assert [one.id for one in annotations.history(session, ann)] == [second.id]
        row = session.scalar(select(audit.Audit).where(audit.Audit.action == "revise"))
        assert (row.object, row.before) == (second.id, {"annotation": first.id})
        require_whole(session)


def test_a_quick_look_back_does_not_make_a_ranking_a_hasty_one(database, ann_at_work):
    ann, work = ann_at_work
    first = hand_in(database, ann, work, NOW + 60, active_seconds=50.0)
    again = parse_submission(body(work, active_seconds=2.0))
    assert do(database, revise, ann, first.id, again, "key of the change", NOW + 90).active_seconds == 52.0


def test_a_revision_that_is_sent_again_is_stored_once(database, ann_at_work):
    ann, work = ann_at_work
    first = hand_in(database, ann, work)
    submission = parse_submission(body(work, comment="on second thoughts"))
    made = [do(database, revise, ann, first.id, submission, "key 2", NOW + i).id for i in (100, 200)]
    assert made[0] == made[1]
    assert count(database, Annotation) == 2


def test_only_the_latest_ranking_can_be_revised(database, ann_at_work):
    ann, work = ann_at_work
    first = hand_in(database, ann, work)
    submission = parse_submission(body(work, comment="on second thoughts"))
    second = do(database, revise, ann, first.id, submission, "key 2", NOW + 100)
    with pytest.raises(Conflict, match="in another tab; reload it") as refused:
        do(database, revise, ann, first.id, submission, "key 3", NOW + 200)
    assert refused.value.current == {"annotation_id": second.id}


def test_nobody_revises_what_somebody_else_ranked(database, ann_at_work):
    ann, work = ann_at_work
    (bob,) = add_people(database, "bob")
    first = hand_in(database, ann, work)
    for annotation_id in (first.id, "nonsense"):
        with pytest.raises(NotFound, match="there is no such ranking of yours"):
            do(database, revise, bob, annotation_id, parse_submission(body(work)), "key 2", NOW)


def test_a_revision_keeps_the_rules_too(database, ann_at_work):
    ann, work = ann_at_work
    first = hand_in(database, ann, work)
    with pytest.raises(Refusal, match="3 of 3 responses have no rank yet"):
        do(database, revise, ann, first.id, parse_submission({}), "key 2", NOW)


# Drafts


def test_a_draft_comes_back_with_the_item(database, ann_at_work):
    ann, work = ann_at_work
    assert do(database, save_draft, ann, work.slot_id, {"comment": "so"}, 0, NOW) == 1
    assert do(database, save_draft, ann, work.slot_id, {"comment": "so far"}, 1, NOW) == 2
    again = take(database, ann)
    assert (again.draft, again.draft_rev) == ({"comment": "so far"}, 2)


def test_a_draft_of_another_tab_is_not_overwritten(database, ann_at_work):
    ann, work = ann_at_work
    do(database, save_draft, ann, work.slot_id, {"tab": 1}, 0, NOW)
    for rev in (0, 2):
        with pytest.raises(Conflict) as refused:
            do(database, save_draft, ann, work.slot_id, {"tab": 2}, rev, NOW)
        assert refused.value.current == {"rev": 1, "payload": {"tab": 1}}


def test_a_draft_that_is_sent_again_is_stored_once(database, ann_at_work):
    ann, work = ann_at_work
    assert [do(database, save_draft, ann, work.slot_id, {"tab": 1}, 0, NOW) for _ in range(2)] == [1, 1]


def test_tabs_that_save_at_once_make_one_draft_and_conflicts(database, ann_at_work):
    ann, work = ann_at_work

    def save(tab: int):
        try:
            return do(database, save_draft, ann, work.slot_id, {"tab": tab}, 0, NOW)
        except Conflict as conflict:
            return conflict.current["payload"]["tab"]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(save, range(10, 18)))
    winner = read(database, select(Draft)).payload["tab"]
    assert sorted(seen) == [1] + [winner] * 7


def test_a_submission_ends_its_draft(database, ann_at_work):
    ann, work = ann_at_work
    do(database, save_draft, ann, work.slot_id, {"comment": "so far"}, 0, NOW)
    hand_in(database, ann, work)
    assert count(database, Draft) == 0
    with pytest.raises(Conflict, match="you have submitted this item already"):
        do(database, save_draft, ann, work.slot_id, {"comment": "late"}, 1, NOW)


def test_nobody_writes_a_draft_of_what_they_do_not_have(database, ann_at_work):
    _, work = ann_at_work
    (bob,) = add_people(database, "bob")
    with pytest.raises(Conflict):
        do(database, save_draft, bob, work.slot_id, {}, 0, NOW)
    with pytest.raises(NotFound):
        do(database, save_draft, bob, "nonsense", {}, 0, NOW)


@pytest.mark.parametrize(
    "payload, rev, field",
    [
        ([], 0, "payload"),
        ({"a": "\0"}, 0, "payload"),
        ({"\ud800": 1}, 0, "payload"),
        ({"a": "x" * 200_000}, 0, "payload"),
        ({"a": math.nan}, 0, "payload"),
        ({}, -1, "rev"),
        ({}, True, "rev"),
        ({}, None, "rev"),
    ],
)
def test_a_draft_that_cannot_be_stored_is_refused(database, ann_at_work, payload, rev, field):
    ann, work = ann_at_work
    with pytest.raises(Refusal) as refused:
        do(database, save_draft, ann, work.slot_id, payload, rev, NOW)
    assert list(refused.value.fields) == [field]


# What was submitted


@pytest.mark.slow
def test_history_shows_ones_own_rankings_the_newest_first_page_by_page(collection):
    database = collection(overlap=2)
    made = [one for one in add_ranked_items(database, 7, handles=("ann", "bob"))]
    bob = [one.id for one in made if one.annotator_id == made[-1].annotator_id]
    with database.read() as session:
        person = session.get(queue.Annotator, made[-1].annotator_id)
        pages, before = [], None
        while page := annotations.history(session, person, 3, before):
            pages.append([one.id for one in page])
            before = page[-1].id
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [one for page in pages for one in page] == bob[::-1]


def test_history_loses_none_that_were_submitted_at_the_same_moment(database):
    add_new_items(database, 5)
    (ann,) = add_people(database, "ann")
    made = {hand_in(database, ann, take(database, ann), now=NOW).id for _ in range(5)}
    with database.read() as session:
        first = annotations.history(session, ann, 2)
        rest = annotations.history(session, ann, 10, first[-1].id)
    assert {one.id for one in [*first, *rest]} == made
    assert len(first) + len(rest) == 5


def test_the_current_ranking_of_a_slot_is_its_latest(collection):
    database = collection(overlap=2)
    made = add_ranked_items(database, 3, handles=("ann", "bob"))
    with database.write() as session:
        ann = session.get(queue.Annotator, made[0].annotator_id)
        again = parse_submission({"ranks": dict.fromkeys(made[0].ranks, 1)})
        revised = revise(session, ann, made[0].id, again, "key", NOW + 10_000)
    with database.read() as session:
        current = set(session.scalars(select(Annotation.id).where(annotations.is_current())))
    assert current == {revised.id, *(one.id for one in made[1:])}

"""From the database to the reports: which rankings count, and what is told of the others."""

import pytest
from collect_world import NOW, add_annotator
from written_rankings import add_item, flag, rank, repeat_of, skip, two_weeks

from reward.collect.figures.agreement import by_answer
from reward.collect.figures.quality import agreement_report, annotator_report, by_day, progress_report
from reward.collect.figures.ranked import read_ranked
from reward.collect.ranking.review import num_complained, review_report

THREE = [("A.", "sft"), ("B.", "sft"), ("C.", "sft")]


@pytest.fixture
def people(database):
    with database.write() as session:
        return [add_annotator(session, handle) for handle in ("ann", "bob")]


def figures_of(report, handle):
    return next(row for row in report["annotators"] if row["annotator"] == handle)


# -- which rankings count --


def test_of_a_revised_ranking_only_the_newest_counts(database, people):
    with database.write() as session:
        item = add_item(session, 1, THREE)
        rank(session, item, people[0], [1, 2, 3])
        newest = rank(session, item, people[0], [3, 2, 1])
        assert read_ranked(session).ranks[0, :3].tolist() == by_answer(newest.ranks)


def test_rankings_of_cancelled_items_do_not_count(database, people):
    with database.write() as session:
        item = add_item(session, 1, THREE)
        rank(session, item, people[0], [1, 2, 3])
        item.state = "cancelled"
        session.flush()
        assert len(read_ranked(session).items) == 0


# -- agreement --


def test_agreement_is_over_normal_items_and_not_over_gold(database, people):
    with database.write() as session:
        normal, gold = add_item(session, 1, THREE), add_item(session, 2, THREE, gold_ranks=[1, 2, 3])
        for person, ranks in zip(people, ([1, 2, 3], [1, 3, 2]), strict=True):
            rank(session, normal, person, ranks)
            rank(session, gold, person, [1, 2, 3])
        report = agreement_report(session)
    assert (report["pair_agreement"]["value"], report["num_rankings"], report["num_items"]) == (2 / 3, 2, 1)


def test_rankings_of_the_paused_and_of_what_nobody_could_rank_are_left_out_and_counted(database, people):
    with database.write() as session:
        first, second = add_item(session, 1, THREE), add_item(session, 2, THREE)
        rank(session, first, people[0], [1, 2, 3])
        rank(session, second, people[0], [None] * 3, not_rankable="all are wrong")
        rank(session, first, people[1], [3, 2, 1])
        session.merge(people[1]).status = "paused"
        session.flush()
        report = agreement_report(session)
    assert report["pair_agreement"]["value"] is None
    assert (report["num_rankings"], report["num_paused"], report["num_not_rankable"]) == (1, 1, 1)


# -- annotators --


def test_an_annotator_is_measured_against_gold_and_against_an_earlier_ranking_of_the_same(database, people):
    with database.write() as session:
        item, gold = add_item(session, 1, THREE), add_item(session, 2, THREE, gold_ranks=[1, 2, 2])
        rank(session, item, people[0], [1, 2, 3])
        rank(session, repeat_of(session, item), people[0], [1, 3, 2])
        rank(session, gold, people[0], [2, 1, 3])
        ann = figures_of(annotator_report(session), "ann")
    assert (ann["self_consistency"]["value"], ann["self_consistency"]["num_items"]) == (2 / 3, 1)
    assert (ann["gold"]["value"], ann["gold"]["num"]) == (0.5, 2)
    assert ann["num_rankings"] == 3


def test_agreement_with_the_others_is_of_one_s_own_items(database, people):
    with database.write() as session:
        cyd = add_annotator(session, "cyd")
        shared, lone = add_item(session, 1, THREE), add_item(session, 2, THREE)
        for person, ranks in ((people[0], [1, 2, 3]), (people[1], [1, 2, 3]), (cyd, [3, 2, 1])):
            rank(session, shared, person, ranks)
        rank(session, lone, cyd, [1, 2, 3])
        report = annotator_report(session)
    assert figures_of(report, "ann")["agreement"]["value"] == 0.5  # with Bob always, with Cyd never
    assert (figures_of(report, "cyd")["agreement"]["value"], figures_of(report, "cyd")["agreement"]["num_pairs"]) == (
        0,
        6,
    )


def test_the_order_of_display_tells_who_prefers_what_comes_first(database, people):
    """Ann ranks by content, Bob takes what is shown first."""
    with database.write() as session:
        for number in range(24):
            item = add_item(session, number, THREE)
            order = item.response_ids[number % 3 :] + item.response_ids[: number % 3]
            rank(session, item, people[0], [1, 2, 3], display_order=order)
            rank(session, item, people[1], [1 + order.index(one) for one in item.response_ids], display_order=order)
        report = annotator_report(session)
    ann, bob = figures_of(report, "ann"), figures_of(report, "bob")
    assert (ann["first_shown_best"]["value"], ann["reasons"]) == (1 / 3, [])
    assert bob["reasons"] == [
        "ranks the answer shown first best in 100 %, by chance 33 %",
        "leaves the answers in the order shown in 100 %, by chance 17 %",
    ]
    assert [row["value"] for row in report["team"]["best_by_position"]] == pytest.approx([2 / 3, 1 / 6, 1 / 6])


def test_skips_are_a_share_of_what_was_handed_out_and_those_without_work_are_not_listed(database, people):
    with database.write() as session:
        rank(session, add_item(session, 1, THREE), people[0], [1, 1, 1], unacceptable=[])
        skip(session, add_item(session, 2, THREE), people[0], "no idea")
        report = annotator_report(session)
    (ann,) = report["annotators"]
    assert (ann["skips"]["value"], ann["skips"]["num"], ann["tied_pairs"]["value"]) == (0.5, 2, 1.0)


# -- progress --


def test_progress_counts_normal_slots_and_each_person_s_rankings_once(database, people):
    with database.write() as session:
        item, gold = add_item(session, 1, THREE), add_item(session, 2, THREE, gold_ranks=[1, 2, 3])
        add_item(session, 3, THREE)
        rank(session, item, people[0], [1, 2, 3])
        rank(session, item, people[0], [1, 3, 2])
        rank(session, gold, people[0], [1, 2, 3])
        report = progress_report(session)
    assert (report["items"], report["done_slots"], report["all_slots"]) == ({"done": 1, "open": 1}, 1, 2)
    assert report["by_annotator"] == [{"annotator": "ann", "num": 2}]


def test_reported_items_count_once_whatever_became_of_them_unless_cancelled(database, people):
    with database.write() as session:
        done, gold, cancelled = (
            add_item(session, n, THREE, gold_ranks=[1, 2, 3] if n == 2 else None) for n in (1, 2, 3)
        )
        rank(session, done, people[0], [1, 2, 3])
        for person in people:
            flag(session, done, person, "personal data")
        flag(session, gold, people[0], "other")
        flag(session, cancelled, people[0], "other")
        cancelled.state = "cancelled"
        session.flush()
        assert (done.state, progress_report(session)["reported"]) == ("done", 2)


def test_days_without_rankings_are_days_too():
    days = by_day({0: 2, 2: 1})
    assert days == [{"day": "1970-01-01", "num": 2}, {"day": "1970-01-02", "num": 0}, {"day": "1970-01-03", "num": 1}]
    assert by_day({}) == []


# -- review --


def test_items_that_wait_for_the_lead_come_first_with_who_said_what(database, people):
    with database.write() as session:
        flagged, waiting = add_item(session, 1, THREE), add_item(session, 2, THREE)
        flag(session, flagged, people[0], "personal data", "an address", response=flagged.response_ids[0])
        flag(session, flagged, people[1], "other")
        skip(session, waiting, people[1], "no idea")
        waiting.state = "review"
        add_item(session, 3, THREE)
        session.flush()
        first, second = review_report(session, limit=10)
        assert (num_complained(session), review_report(session, limit=10, first=1)) == (2, [second])
    assert (first["item_id"], second["item_id"]) == (waiting.id, flagged.id)
    assert first["skips"] == [{"annotator": "bob", "reason": "no idea", "at": NOW}]
    assert second["flags"][0]["response_id"] == flagged.response_ids[0]


# -- all together --


@pytest.mark.slow
def test_two_weeks_of_seven_people_show_who_needs_a_look(make_collection, tmp_path):
    database = make_collection(f"sqlite:///{tmp_path}/collect.db", overlap=1, agreement_share=0.3)
    with database.write() as session:
        two_weeks(session)
    with database.read() as session:
        rows = annotator_report(session)["annotators"]
    suspected = {row["annotator"] for row in rows if row["reasons"]}
    assert suspected == {"dolores", "guillermo"}  # who were made to prefer the first, and to click through

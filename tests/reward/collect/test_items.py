"""Items: what is queued once is not queued twice, and what nobody can rank is refused by name and place."""

import dataclasses
import sqlite3

import pytest
from collect_world import NOW, add_new_items, items_of, new_item
from sqlalchemy import func, select

from reward.collect.integrity.verify import require_whole
from reward.collect.ranking import items
from reward.collect.ranking.items import NewItem, NewResponse, add_in_chunks, add_items, check_items, share_of
from reward.collect.refusals import Refusal
from reward.collect.store.tables import Audit, Item, Prompt, Response, Slot


def add(database, *new_items):
    with database.write() as session:
        return add_items(session, new_items, "command line", NOW)


def answers(*texts, **source):
    return [NewResponse(text, source) for text in texts]


def count(database, table, *where) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table).where(*where))


def counts(added) -> dict:
    return {name: number for name, number in vars(added).items() if name != "notes" and number}


def test_an_item_is_stored_with_its_prompt_answers_and_slots(database_url, make_collection):
    database = make_collection(database_url, overlap=3, agreement_overlap=3)
    added = add(database, new_item(1, 4, prompt_id="p1", group="g1", priority=0.5, meta={"from": "here"}))
    assert counts(added) == {"items": 1, "prompts": 1}
    (item,) = items_of(database)
    assert (item.kind, item.state, item.priority, item.meta) == ("normal", "open", 0.5, {"from": "here"})
    with database.read() as session:
        prompt = session.get(Prompt, item.prompt_id)
        assert (prompt.external_id, prompt.group, prompt.messages[0]["content"]) == ("p1", "g1", "Prompt 1?")
        texts = [session.get(Response, response_id).text for response_id in item.response_ids]
        assert texts == ["1.0", "1.1", "1.2", "1.3"]
        assert list(session.scalars(select(Slot.n).order_by(Slot.n))) == [0, 1, 2]


def test_the_same_items_again_add_nothing(database):
    add_new_items(database, 3)
    assert counts(add_new_items(database, 3)) == {"already_there": 3}
    assert counts(add(database, new_item(7), new_item(7))) == {"items": 1, "prompts": 1, "already_there": 1}
    assert (count(database, Slot), count(database, Response)) == (4, 12)


def test_an_item_that_comes_again_far_below_is_not_added_again(database):
    with database.write() as session:
        added = add_items(session, (new_item(i % 250) for i in range(251)), "command line", NOW)
    assert counts(added) == {"items": 250, "prompts": 250, "already_there": 1}


def test_the_same_answers_in_another_order_are_the_same_item(database):
    item = new_item(1)
    add(database, item)
    assert counts(add(database, dataclasses.replace(item, responses=item.responses[::-1]))) == {"already_there": 1}


def test_other_answers_to_the_same_prompt_are_another_item(database):
    item = new_item(1, 3)
    add(database, item)
    added = add(database, dataclasses.replace(item, responses=answers("1.0", "1.1", "new")))
    assert counts(added) == {"items": 1}
    assert (count(database, Prompt), count(database, Response)) == (1, 4)


def test_the_same_text_is_one_answer_with_all_its_sources(database):
    responses = [*answers("same", policy="a"), *answers("other", policy="a"), *answers("same", policy="b")]
    added = add(database, dataclasses.replace(new_item(1), responses=responses))
    assert counts(added) == {"items": 1, "prompts": 1, "merged": 1}
    assert added.notes == ["file:1: answer 3 has the text of an earlier one; they are one answer now"]
    with database.read() as session:
        same = session.scalar(select(Response).where(Response.text == "same"))
        assert same.sources == [{"policy": "a"}, {"policy": "b"}]


def test_a_later_import_adds_its_sources_to_an_answer_that_is_there(database):
    add(database, dataclasses.replace(new_item(1), responses=answers("x", "y", policy="a")))
    add(database, dataclasses.replace(new_item(1), responses=answers("x", "z", policy="b")))
    with database.read() as session:
        sources = session.scalar(select(Response.sources).where(Response.text == "x"))
        assert sources == [{"policy": "a"}, {"policy": "b"}]


def test_answers_that_differ_in_white_space_are_two(database):
    assert counts(add(database, dataclasses.replace(new_item(1), responses=answers("x", "x ")))).get("merged") is None


def test_a_prompt_keeps_its_first_group_and_says_so(database):
    add(database, new_item(1, group="g1"))
    added = add(database, new_item(1, 4, group="g2"))
    assert added.notes == ["file:1: the prompt is there with group 'g1', which stays; not 'g2'"]


def test_a_comparison_item_whose_policies_agree_is_a_tie_that_nobody_ranks(database):
    responses = [*answers("same", policy="a"), *answers("same", policy="b")]
    added = add(database, dataclasses.replace(new_item(1), responses=responses, comparison="a or b"))
    assert counts(added) == {"items": 1, "prompts": 1, "merged": 1, "identical": 1}
    (item,) = items_of(database, state="identical")
    assert (item.comparison, len(item.response_ids), count(database, Slot)) == ("a or b", 1, 0)


def test_each_comparison_has_its_own_items(database):
    assert counts(add(database, new_item(1), new_item(1, comparison="x"), new_item(1, comparison="y")))["items"] == 3


def test_a_gold_item_has_ranks_and_no_slots_yet(database):
    add(database, new_item(1, 3, gold_ranks=[2, 1, 2]))
    (item,) = items_of(database, kind="gold")
    assert [item.gold_ranks[response_id] for response_id in item.response_ids] == [2, 1, 2]
    assert count(database, Slot) == 0


def test_a_gold_item_may_be_a_normal_item_too(database):
    assert counts(add(database, new_item(1), new_item(1, gold_ranks=[1, 2, 3])))["items"] == 2


def test_gold_ranks_that_contradict_those_that_are_there_are_refused(database):
    add(database, new_item(1, gold_ranks=[1, 2, 3]))
    assert counts(add(database, new_item(1, gold_ranks=[1, 2, 4]))) == {"already_there": 1}  # the same order
    with pytest.raises(Refusal, match="file:1: a gold item with these answers is there already, and ranks them other"):
        add(database, new_item(1, gold_ranks=[2, 1, 3]))


@pytest.mark.slow
def test_about_the_agreement_share_of_items_gets_second_opinions_whenever_they_are_imported(tmp_path, make_collection):
    second = []  # of each import, the prompts of the items that three people rank
    for name in ("a", "b"):
        database = make_collection(f"sqlite:///{tmp_path}/{name}.db", agreement_share=0.25, agreement_overlap=3)
        add_new_items(database, 200)
        with database.read() as session:
            third_slots = select(Prompt.messages).join(Item).join(Slot).where(Slot.n == 2)
            second.append(sorted(messages[0]["content"] for messages in session.scalars(third_slots)))
        assert count(database, Slot) == 200 + 2 * len(second[-1])
    assert second[0] == second[1]
    assert 25 < len(second[0]) < 75  # 50 expected, 4 standard deviations of 6.1 either way


def test_shares_are_even():
    shares = [share_of("test", i) for i in range(2000)]
    assert abs(sum(shares) / 2000 - 0.5) < 0.02  # 3 standard errors of 0.0065
    assert 0 <= min(shares) < 0.01 and 0.99 < max(shares) < 1


def said(**changes) -> NewItem:
    return dataclasses.replace(new_item(3), **changes)


@pytest.mark.parametrize(
    "new, message",
    [
        (said(responses=answers("x")), "file:3: has 1 answer; people rank 2 to 9 different answers"),
        (said(responses=answers(*map(str, range(10)))), "file:3: has 10 answers; people rank 2 to 9"),
        (said(responses=[]), "file:3: has 0 answers"),
        (said(responses=answers("x", "x")), "file:3: all 2 answers are the same text; need 2 that differ"),
        (said(responses=answers("x", " \n")), "file:3: answer 2 is empty; leave it out"),
        (said(responses=answers("x", None)), "file:3: answer 2 is empty; leave it out"),
        (said(responses=answers("x", "a\0b")), "file:3: answer 2 has a NUL or half a character in it"),
        (said(responses=answers("\ud800", "y")), "file:3: answer 1 has a NUL or half a character in it"),
        (said(messages=[{"role": "user", "content": "a\0b"}]), "file:3: the prompt has a NUL or half a character"),
        (said(messages=[]), "file:3: field 'messages' has no user turn"),
        (said(messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]), "must end with a"),
        (said(gold_ranks=[1, 2]), "file:3: gold_ranks has 2 entries for 3 answers"),
        (said(gold_ranks=[1, 2, True]), "file:3: gold_ranks has True; a rank is a whole number from 1"),
        (said(gold_ranks=[1, 2, 0]), "file:3: gold_ranks has 0; a rank is a whole number from 1"),
        (said(gold_ranks=[2, 2, 2]), "file:3: gold_ranks ties all answers"),
        (said(gold_ranks=[1, 2], responses=answers("x", "x")), "file:3: gold_ranks puts the same answer at 1 and at 2"),
        (said(gold_ranks=[1, 2, 3], comparison="x"), "file:3: an item of comparison 'x' cannot be gold"),
    ],
)
def test_what_cannot_be_ranked_is_refused_and_nothing_is_added(database, new, message):
    with pytest.raises(Refusal) as refused:
        add(database, new_item(1), new)
    assert message in str(refused.value)
    assert count(database, Prompt) == count(database, Slot) == 0


def test_an_import_is_audited_with_its_counts(database):
    add_new_items(database, 2)
    with database.read() as session:
        row = session.scalar(select(Audit).where(Audit.action == "add items"))
        assert (row.actor, row.action, row.after["items"], row.after["prompts"]) == ("command line", "add items", 2, 2)
        require_whole(session)


def test_notes_of_a_long_import_are_cut_and_the_count_is_not(database):
    twice = [dataclasses.replace(new_item(i), responses=answers("one", "two", "one")) for i in range(60)]
    with database.write() as session:
        added = add_items(session, twice, "command line", NOW)
    assert (added.merged, len(added.notes), added.notes[-1]) == (60, 21, "... and more of the kind")


def test_what_is_there_already_and_what_ties_in_a_comparison_is_counted_without_a_note(database):
    add_new_items(database, 3)
    added = add_new_items(database, 3)
    assert (added.already_there, added.notes) == (3, [])
    tie = dataclasses.replace(new_item(9), responses=answers("same", "same"), comparison="a against b")
    added = add(database, tie)
    assert (added.identical, added.notes) == (1, [])


# In chunks


@pytest.fixture
def small_chunks(monkeypatch):
    for name, value in (("CHUNK", 2), ("FIRST_CHUNK", 2), ("LOCK_SECONDS", 1e9), ("PAUSE", 0.0)):
        monkeypatch.setattr(items, name, value)


def mixed_items() -> list[NewItem]:
    """New, there already, twice in the file, merged, of another group, gold, and a tie of a comparison."""
    same = dataclasses.replace(new_item(5), responses=answers("same", "same", policy="a"), comparison="c")
    merged = dataclasses.replace(new_item(6), responses=answers("one", "two", "one"))
    gold = new_item(1, gold_ranks=[1, 2, 3])
    return [new_item(1), new_item(2, group="g2"), new_item(2), new_item(2, 4, group="g3"), same, merged, gold, gold]


def test_checking_items_says_what_adding_them_does_and_writes_nothing(database, small_chunks):
    add(database, new_item(1))
    would = check_items(database, mixed_items())
    assert count(database, Item) == 1
    assert counts(would) == {"items": 5, "prompts": 3, "merged": 2, "already_there": 3, "identical": 1}
    with database.write() as session:
        assert would == add_items(session, mixed_items(), "command line", NOW)


def test_items_that_were_checked_are_added_in_transactions_that_each_are_audited(database, small_chunks):
    add(database, new_item(1))
    parts = list(add_in_chunks(database, iter(mixed_items()), "command line"))
    assert [part.items for part in parts] == [1, 1, 2, 1]
    with database.read() as session:
        rows = session.scalars(select(Audit).where(Audit.action == "add items").order_by(Audit.id)).all()
        assert [row.after["items"] for row in rows] == [1, 1, 1, 2, 1]
        require_whole(session)


def test_what_came_of_chunks_adds_up_with_their_notes_cut(database, small_chunks):
    twice = [dataclasses.replace(new_item(i), responses=answers("one", "two", "one")) for i in range(60)]
    sum_of_all = items.Added()
    for part in add_in_chunks(database, twice, "command line"):
        sum_of_all.add(part)
    assert (sum_of_all.items, sum_of_all.merged, len(sum_of_all.notes)) == (60, 60, 21)
    assert sum_of_all.notes[-1] == "... and more of the kind"


def test_an_import_that_is_cut_short_leaves_whole_chunks_and_the_same_again_adds_the_rest(database, small_chunks):
    for number, _ in enumerate(add_in_chunks(database, (new_item(i) for i in range(7)), "command line")):
        if number == 1:
            break
    assert (count(database, Item), count(database, Slot)) == (4, 4)
    rest = list(add_in_chunks(database, (new_item(i) for i in range(7)), "command line"))
    assert sum(part.items for part in rest) == 3 and sum(part.already_there for part in rest) == 4
    assert (count(database, Item), count(database, Slot), count(database, Response)) == (7, 7, 21)


def test_chunks_become_smaller_where_one_would_hold_up_others_for_long(tmp_path, make_collection, monkeypatch):
    database = make_collection(f"sqlite:///{tmp_path}/collect.db")
    monkeypatch.setattr(items, "LOCK_SECONDS", 1e-9)
    parts = list(add_in_chunks(database, (new_item(i) for i in range(23)), "command line"))
    assert [part.items for part in parts] == [20, 1, 1, 1]


def test_what_contradicts_a_gold_item_of_the_same_file_is_refused_when_it_is_checked(database, small_chunks):
    again = dataclasses.replace(new_item(1, gold_ranks=[3, 2, 1]), where="file:9")
    with pytest.raises(Refusal, match="file:9: a gold item with these answers is there already, and ranks them other"):
        check_items(database, [new_item(1, gold_ranks=[1, 2, 3]), new_item(2), new_item(3), again])


def test_others_write_between_the_chunks_and_reading_never_waits_for_a_writer(tmp_path, make_collection, small_chunks):
    """Each with a connection of its own, as another process has it, that would wait for no lock."""
    database = make_collection(f"sqlite:///{tmp_path}/collect.db")
    for part in add_in_chunks(database, [new_item(i) for i in range(4)], "command line"):
        with sqlite3.connect(database.url.database, timeout=0) as other:
            other.execute("UPDATE collection SET name = ?", [str(part.items)])
    with sqlite3.connect(database.url.database, timeout=0, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert check_items(database, [new_item(i) for i in range(6)]).items == 2

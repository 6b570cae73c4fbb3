"""Many people at once: 16 clients, each on a connection of its own, rank 200 items of which each wants two people."""

import threading
import time
from collections import Counter
from uuid import uuid4

import pytest
from collect_world import add_new_items, add_people, body
from sqlalchemy import func, select

from reward.collect.integrity.verify import require_whole
from reward.collect.ranking.annotations import submit
from reward.collect.ranking.queue import Work, next_work, progress
from reward.collect.ranking.submissions import parse_submission
from reward.collect.refusals import Conflict
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotation, Audit, Item, Slot

pytestmark = pytest.mark.slow

NUM_CLIENTS, NUM_ITEMS, OVERLAP = 16, 200, 2


class Client(threading.Thread):
    """Takes and ranks items until nothing is left for it, or anybody had an error."""

    def __init__(self, database: Database, annotator, errors: list):
        super().__init__()
        self.database, self.annotator, self.errors = database, annotator, errors
        self.why_it_ended = None

    def run(self):
        try:
            while not self.errors and self.rank_one():
                pass
        except Exception as error:
            self.errors.append(error)

    def rank_one(self) -> bool:
        with self.database.write() as session:
            work = next_work(session, self.annotator, time.time())
        if not isinstance(work, Work):
            self.why_it_ended = work.reason
            time.sleep(0.02)  # others hold the rest
            return work.reason == "lease_wait"
        with self.database.write() as session:
            submit(session, self.annotator, work.slot_id, parse_submission(body(work)), uuid4().hex, time.time())
        return True


class Tab(Client):
    """One more tab of a person who works in several: another may have submitted what this one shows."""

    def rank_one(self) -> bool:
        try:
            return super().rank_one()
        except Conflict:
            return True


def run_together(kind: type[Client], database, annotators) -> list[Client]:
    errors = []
    clients = [kind(database, annotator, errors) for annotator in annotators]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert errors == []
    return clients


@pytest.fixture
def crowded(make_collection, database_url):
    database = make_collection(database_url, overlap=OVERLAP, agreement_overlap=OVERLAP)
    add_new_items(database, NUM_ITEMS)
    return database


def test_sixteen_people_rank_every_item_exactly_twice_and_nobody_an_item_twice(crowded):
    clients = run_together(Client, crowded, add_people(crowded, *[f"person {i}" for i in range(NUM_CLIENTS)]))
    assert {client.why_it_ended for client in clients} == {"all_done"}
    with crowded.read() as session:
        pairs = session.execute(select(Annotation.item_id, Annotation.annotator_id)).all()
        assert len(pairs) == len(set(pairs)) == NUM_ITEMS * OVERLAP
        assert set(Counter(item_id for item_id, _ in pairs).values()) == {OVERLAP}
        assert session.execute(select(Slot.state, func.count()).group_by(Slot.state)).all() == [("done", 400)]
        assert session.execute(select(Item.state, func.count()).group_by(Item.state)).all() == [("done", 200)]
        submits = select(func.count()).where(Audit.action == "submit")
        assert session.scalar(submits) == NUM_ITEMS * OVERLAP
        require_whole(session)


def test_one_person_in_many_tabs_gets_one_item_and_each_item_once(make_collection, database_url):
    database = make_collection(database_url, gold_share=0.3, repeat_share=0.2)
    add_new_items(database, 15)
    add_new_items(database, 10, first=100, gold_ranks=[1, 2, 3])
    (ann,) = add_people(database, "ann")
    with database.read() as session:
        expected = progress(session, ann, time.time()).left_for_me
    run_together(Tab, database, [ann] * 6)
    with database.read() as session:
        items = session.scalars(select(Annotation.item_id)).all()
        assert len(items) == len(set(items)) == expected
        assert session.scalar(select(func.count()).where(Slot.state == "held")) == 0

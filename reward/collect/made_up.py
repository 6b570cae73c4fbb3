"""A collection as it is after months: tens of thousands of items and rankings, written as the server writes them.

Items come in through the import's function. Rankings go straight into the tables, each with its row of the audit, so
that the chain holds; skips and reports go through the server's functions. Nothing in it looks like a person's data.
"""

import time
import uuid

import numpy as np
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from reward.collect.home import create_collection
from reward.collect.people import accounts
from reward.collect.ranking import items, queue
from reward.collect.ranking.annotations import competition_ranks
from reward.collect.ranking.submissions import Submission
from reward.collect.store import audit
from reward.collect.store.database import Database
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Annotator, Item, Skip, Slot

ACTOR = "bench"
OVERLAP = 2
LEAD, PASSWORD = "lead", "made up for the bench"
POLICIES = ("sft", "ppo", "hub")
SHARES = {"comparison": 0.02, "gold": 0.01}  # of the items
REPEATS, REVISIONS = 0.02, 0.01  # of the rankings
SKIPS, FLAGS = 0.01, 0.005  # per ranking
CHUNK = 2000  # rankings in one transaction
WORDS = ("the", "answer", "depends", "on", "what", "is", "meant", "by", "it", "so", "consider", "both", "sides")


def make_collection(database: Database, num_items: int, num_rankings: int, num_annotators: int = 40, seed: int = 0):
    """Fills an empty database with about so many rankings. The accounts are LEAD and person-0, ..., with PASSWORD."""
    rng, now = np.random.default_rng(seed), time.time()
    settings = Settings(overlap=OVERLAP, agreement_overlap=OVERLAP, gold_share=0.05, repeat_share=0.02)
    create_collection(database, "made up", "Prefer the true answer.", settings, now)
    people = _people(database, num_annotators, now)
    with database.write() as session:
        items.add_items(session, (_item(rng, n, num_items) for n in range(num_items)), ACTOR, now)
    _rank_all(database, rng, people, num_rankings, now)
    _complain(database, rng, people, num_rankings, now)


def _people(database: Database, number: int, now: float) -> list[Annotator]:
    people = []
    for handle in [LEAD, *(f"person-{n}" for n in range(number))]:
        role = "lead" if handle == LEAD else "annotator"
        with database.write() as session:
            secret = accounts.create_invite(session, role, 1, ACTOR, now)
            person = accounts.accept_invite(session, secret, handle, PASSWORD, now)
            if role == "annotator":
                people.append(person)
    return people


def _item(rng, number: int, num_items: int) -> items.NewItem:
    place, k = number / num_items, int(rng.integers(2, 7))
    is_comparison = place < SHARES["comparison"]
    is_gold = not is_comparison and place < sum(SHARES.values())
    names = POLICIES if is_comparison else POLICIES[:1] * k
    texts = [f"Answer {n} to {number}: {_words(rng, 20, 120)}." for n in range(len(names))]
    answers = [items.NewResponse(text, {"policy": name}) for text, name in zip(texts, names, strict=True)]
    prompt = [{"role": "user", "content": f"Question {number}: {_words(rng, 5, 40)}?"}]
    gold = {"gold_ranks": [int(rank) for rank in rng.permutation(k) + 1]} if is_gold else {}
    return items.NewItem(
        prompt, answers, f"made up:{number}", comparison="three policies" if is_comparison else None, **gold
    )


def _words(rng, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(least, most)))


# -- rankings --


def _rank_all(database: Database, rng, people: list[Annotator], number: int, now: float) -> None:
    """Turns at normal items in the order of the queue, gold items and repeats among them, some changed afterwards."""
    with database.read() as session:
        normal = session.execute(select(Slot.id, Slot.item_id).order_by(Slot.item_id, Slot.n)).all()
        golds = list(session.scalars(select(Item.id).where(Item.kind == "gold")))
    num_golds = min(len(golds) * len(people), number // 25)
    num_normal = number - num_golds - int(number * (REPEATS + REVISIONS))
    seconds = now - np.sort(rng.uniform(0, 60 * 86400, number))[::-1]  # over sixty days
    turns = _normal_turns(rng, normal[:num_normal], people) + _gold_turns(rng, golds, people, num_golds)
    rng.shuffle(turns)
    for first in range(0, number, CHUNK):
        with database.write() as session:
            _rank_chunk(session, rng, people, turns[first : first + CHUNK], seconds[first : first + CHUNK])


def _normal_turns(rng, slots, people) -> list[tuple[str | None, str, Annotator]]:
    """(slot id, item id, who): no two turns at one item are of one person."""
    first = rng.integers(len(people), size=len(slots))
    turns, before = [], None
    for (slot_id, item_id), n in zip(slots, first, strict=True):
        if before is not None and before[0] == item_id and before[1] == n:
            n = (n + 1) % len(people)
        turns.append((slot_id, item_id, people[n]))
        before = (item_id, n)
    return turns


def _gold_turns(rng, golds, people, number) -> list[tuple[None, str, Annotator]]:
    chosen = rng.choice(len(golds) * len(people), number, replace=False) if number else []
    return [(None, golds[n // len(people)], people[n % len(people)]) for n in chosen]


def _rank_chunk(session: Session, rng, people, turns, seconds) -> None:
    there = {item.id: item for item in session.scalars(select(Item).where(Item.id.in_([turn[1] for turn in turns])))}
    slots = {one.id: one for one in session.scalars(select(Slot).where(Slot.id.in_([turn[0] for turn in turns])))}
    made = []
    for (slot_id, item_id, person), at in zip(turns, seconds, strict=False):
        slot = slots.get(slot_id) or _new_slot(session, there[item_id], people.index(person))
        made.append(_rank(session, rng, there[item_id], slot, person, float(at)))
    for annotation in rng.choice(made, int(len(made) * REPEATS), replace=False):
        again = _repeat(session, there[annotation.item_id])
        person = next(one for one in people if one.id == annotation.annotator_id)
        _rank(session, rng, again, _new_slot(session, again, 0), person, annotation.submitted_at + 3600)
    for annotation in rng.choice(made, int(len(made) * REVISIONS), replace=False):
        _revise(session, rng, there[annotation.item_id], annotation)
    _close(session, [item for item in there.values() if item.kind == "normal"])


def _new_slot(session: Session, item: Item, n: int) -> Slot:
    slot = items.new_slot(item.id, n)
    session.add(slot)
    return slot


def _repeat(session: Session, item: Item) -> Item:
    kept = ("prompt_id", "response_ids", "content_sha256", "priority", "created_at")
    names = {"id": uuid.uuid4().hex, "kind": "repeat", "state": "open", "repeat_of": item.id, "meta": {}}
    again = Item(**names, **{name: getattr(item, name) for name in kept})
    session.add(again)
    return again


def _rank(session: Session, rng, item: Item, slot: Slot, person: Annotator, at: float) -> Annotation:
    slot.annotator_id, slot.state, slot.started_at = person.id, "done", at - 300
    session.flush()
    about = {"slot_id": slot.id, "item_id": item.id, "annotator_id": person.id, "revision": 1}
    return _add(session, rng, item, about, at, None)


def _revise(session: Session, rng, item: Item, old: Annotation) -> None:
    about = {name: getattr(old, name) for name in ("slot_id", "item_id", "annotator_id")} | {"revision": 2}
    _add(session, rng, item, about, old.submitted_at + 60, old.id)


def _add(session: Session, rng, item: Item, about: dict, at: float, replaces: str | None) -> Annotation:
    ids = [item.response_ids[n] for n in rng.permutation(len(item.response_ids))]
    seen = np.array([int(one[:6], 16) / 16**6 for one in ids]) + rng.normal(scale=0.5, size=len(ids))
    ranks = competition_ranks(Submission(ranks={one: int(4 * -seen[n]) + 20 for n, one in enumerate(ids)}), ids)
    no_order = "all are wrong" if rng.random() < 0.01 else None
    annotation = Annotation(
        id=uuid.uuid4().hex,
        display_order=ids,
        ranks=dict.fromkeys(ids) if no_order else ranks,
        unacceptable=[],
        not_rankable=no_order,
        ratings={},
        comment="",
        demonstration="",
        guidelines_version=1,
        started_at=at - 300,
        submitted_at=at,
        active_seconds=float(rng.lognormal(3.5, 0.6)),
        client={"ways": ["made up"]},
        idempotency_key=uuid.uuid4().hex,
        body_sha256="",
        **about,
    )
    session.add(annotation)
    session.flush()
    action = "revise" if replaces else "submit"
    audit.append_annotation(session, about["annotator_id"], action, annotation, replaces, "", at)
    return annotation


def _close(session: Session, ranked: list[Item]) -> None:
    undone = set(session.scalars(select(Slot.item_id).where(Slot.state != "done")))
    for item in ranked:
        item.state = "open" if item.id in undone else "done"


# -- skips and reports --


def _complain(database: Database, rng, people: list[Annotator], number: int, now: float) -> None:
    with database.read() as session:
        free = list(session.scalars(select(Slot.id).where(Slot.state == "open").order_by(Slot.item_id)))
    num_skips, num_flags = int(number * SKIPS), int(number * FLAGS)
    chosen = rng.permutation(len(free))[: num_skips + num_flags]
    with database.write() as session:
        for n, at in enumerate(chosen):
            person, slot = people[n % len(people)], session.get_one(Slot, free[at])
            if _has_had(session, person, slot.item_id):
                continue
            slot.annotator_id, slot.state, slot.started_at = person.id, "held", now
            session.flush()
            if n < num_skips:
                queue.skip(session, person, slot.id, "I cannot judge this", now)
            else:
                queue.flag(session, person, slot.id, None, "Cannot be answered", "", now)
                queue.release(session, person, slot.id, now)


def _has_had(session: Session, person: Annotator, item_id: str) -> bool:
    return any(
        session.scalar(select(exists().where(table.item_id == item_id, table.annotator_id == person.id)))
        for table in (Slot, Skip)
    )

"""Rankings written straight into the tables, with any order of display, time and fault that a test wants."""

from uuid import uuid4

import numpy as np
from collect_world import NOW, add_annotator
from sqlalchemy import func, select

from reward.collect.ranking.items import NewItem, NewResponse, add_items
from reward.collect.store.tables import Annotation, Annotator, Flag, Item, Skip, Slot

DAY = 86400.0
SUBJECTS = ("a tidal power plant", "the printing press", "sourdough bread", "a suspension bridge", "the water cycle")
ASKS = ("Explain {} to a ten-year-old.", "What can go wrong with {}?", "Write a short poem about {}.", "Why {}?")


def add_item(session, number: int, answers: list[tuple[str, str]], **options) -> Item:
    """Item `number` with answers [(text, policy)]; options as in NewItem. The item's answers are in this order."""
    ask = ASKS[number % len(ASKS)].format(SUBJECTS[number // len(ASKS) % len(SUBJECTS)])
    messages = [{"role": "user", "content": f"{ask} (case {number})"}]
    responses = [NewResponse(text, {"policy": policy}) for text, policy in answers]
    there = set(session.scalars(select(Item.id)))
    add_items(session, [NewItem(messages, responses, f"seed:{number}", **options)], "command line", NOW)
    (added,) = set(session.scalars(select(Item.id))) - there
    return session.get_one(Item, added)


def add_comparison(session, name: str, answers: list[tuple[str, str]], first: int = 0) -> list[Item]:
    """One item for each (sft's answer, ppo's answer)."""
    both = [[(sft, "sft"), (ppo, "ppo")] for sft, ppo in answers]
    return [add_item(session, first + n, two, comparison=name) for n, two in enumerate(both)]


def rank(session, item: Item, person: Annotator, ranks: list[int | None], at: float = NOW, **said) -> Annotation:
    """A ranking of the item's answers in their order; the person's second one of an item is a revision.

    said: columns of Annotation that differ from the usual.
    """
    slot = slot_of(session, item, person)
    revision = session.scalar(select(func.count()).where(Annotation.slot_id == slot.id)) + 1
    usual = {
        "display_order": item.response_ids,
        "ranks": dict(zip(item.response_ids, ranks, strict=True)),
        "unacceptable": [],
        "not_rankable": None,
        "ratings": {},
        "comment": "",
        "demonstration": "",
        "guidelines_version": 1,
        "started_at": at - 60,
        "submitted_at": at,
        "active_seconds": 30.0,
        "client": {},
    }
    ids = {"id": uuid4().hex, "slot_id": slot.id, "item_id": item.id, "annotator_id": person.id, "revision": revision}
    annotation = Annotation(**ids, **usual | said, idempotency_key=uuid4().hex, body_sha256="")
    session.add(annotation)
    session.flush()
    return annotation


def slot_of(session, item: Item, person: Annotator) -> Slot:
    """The person's slot, done: the one that they had, else a free one, else a new one."""
    slots = session.scalars(select(Slot).where(Slot.item_id == item.id).order_by(Slot.n)).all()
    own = [slot for slot in slots if slot.annotator_id in (person.id, None)]
    slot = max(own, key=lambda slot: slot.annotator_id is not None, default=None)
    if slot is None:
        slot = Slot(id=uuid4().hex, item_id=item.id, n=len(slots))
        session.add(slot)
    slot.annotator_id, slot.state = person.id, "done"
    if not any(one.state == "open" for one in slots):
        item.state = "done"
    session.flush()
    return slot


def repeat_of(session, item: Item) -> Item:
    again = {"id": uuid4().hex, "kind": "repeat", "state": "open", "repeat_of": item.id}
    kept = ("prompt_id", "response_ids", "content_sha256", "gold_ranks", "comparison", "priority", "meta", "created_at")
    repeat = Item(**again, **{name: getattr(item, name) for name in kept})
    session.add(repeat)
    session.flush()
    return repeat


def skip(session, item: Item, person: Annotator, reason: str, at: float = NOW) -> None:
    session.add(Skip(item_id=item.id, annotator_id=person.id, reason=reason, at=at))
    session.flush()


def flag(session, item: Item, person: Annotator, reason: str, note: str = "", at: float = NOW, response=None) -> None:
    ids = {"id": uuid4().hex, "item_id": item.id, "annotator_id": person.id, "response_id": response}
    session.add(Flag(**ids, reason=reason, note=note, at=at))
    session.flush()


# -- a collection as it may look after two weeks --

PEOPLE = {  # handle: (noise of the utilities, pull of the answer shown first, typical seconds, share of the work)
    "amira": (0.6, 0.0, 70, 1.0),
    "bastien": (0.8, 0.0, 55, 0.9),
    "chidi": (0.7, 0.0, 85, 0.7),
    "dolores": (0.9, 1.6, 40, 0.8),  # likes what comes first
    "edvard": (1.0, 0.0, 62, 0.5),
    "fumiko": (0.5, 0.0, 95, 0.4),
    "guillermo": (12.0, 0.0, 7, 0.6),  # clicks through
}


def two_weeks(session, num_items: int = 160, seed: int = 0) -> dict[str, Annotator]:
    """Seven annotators, of whom two need a look, rank items, gold items, repeats and a comparison of three policies."""
    rng = np.random.default_rng(seed)
    people = {handle: add_annotator(session, handle) for handle in PEOPLE}
    for number in range(num_items):
        item, utilities = seeded_item(session, rng, number, num_answers=int(rng.integers(3, 6)))
        at = NOW + DAY * 14 * (number / num_items) ** 1.3
        chosen = rng.permutation(list(people))[: 1 + (rng.random() < 0.35)]
        for handle in chosen:
            if rng.random() < PEOPLE[handle][3]:
                rank_by_utility(session, rng, item, people[handle], utilities, at)
                if rng.random() < 0.12:
                    rank_by_utility(session, rng, repeat_of(session, item), people[handle], utilities, at + 2 * DAY)
    seeded_gold(session, rng, people)
    seeded_comparison(session, rng, people)
    seeded_complaints(session, people)
    return people


def seeded_item(session, rng, number: int, num_answers: int, **options) -> tuple[Item, np.ndarray]:
    answers = [(f"Answer {j + 1} to case {number}. " * (j + 1), "sft") for j in range(num_answers)]
    utilities = rng.normal(size=num_answers)
    if options.pop("gold", False):
        options["gold_ranks"] = [1 + int((utilities > one).sum()) for one in utilities]
    return add_item(session, number, answers, **options), utilities


def rank_by_utility(session, rng, item: Item, person: Annotator, utilities: np.ndarray, at: float) -> Annotation:
    """As somebody with this person's noise, pull and pace would: answers that seem alike are tied."""
    noise, pull, pace, _ = PEOPLE[person.handle]
    order = rng.permutation(len(utilities))
    seen = utilities + rng.normal(scale=noise, size=len(utilities))
    seen[order[0]] += pull
    steps = np.round(seen * 2.5)
    said = {"active_seconds": float(pace * rng.lognormal(sigma=0.5)), "submitted_at": at + float(rng.uniform(0, DAY))}
    said["unacceptable"] = [
        item.response_ids[j] for j in range(len(steps)) if steps[j] == steps.min() and steps[j] < -5
    ]
    said["display_order"] = [item.response_ids[j] for j in order]
    return rank(session, item, person, [1 + int((steps > one).sum()) for one in steps], at, **said)


def seeded_gold(session, rng, people) -> None:
    for number in range(2000, 2012):
        item, utilities = seeded_item(session, rng, number, 4, gold=True)
        for handle, person in people.items():
            if rng.random() < PEOPLE[handle][3]:
                clear = 2.5 * utilities  # gold items are chosen to be clear
                rank_by_utility(session, rng, item, person, clear, NOW + DAY * float(rng.uniform(0, 13)))


def seeded_comparison(session, rng, people, num_prompts: int = 120) -> None:
    quality = {"ppo": 0.7, "sft": 0.0, "base": -0.9}
    for number in range(3000, 3000 + num_prompts):
        texts = {name: f"{name[0]} says something about case {number}." for name in quality}
        if rng.random() < 0.1:
            texts["ppo"] = texts["sft"]
        item = add_item(session, number, [(texts[name], name) for name in quality], comparison="stage 3, May")
        utilities = np.array([quality[name] + rng.normal(scale=0.6) for name in quality])[: len(item.response_ids)]
        person = people[str(rng.choice(list(people)[:4]))]
        if rng.random() < 0.9 and len(item.response_ids) > 1:
            rank_by_utility(session, rng, item, person, utilities[-len(item.response_ids) :], NOW + 14 * DAY)


def seeded_complaints(session, people) -> None:
    waiting = session.scalars(select(Item).where(Item.kind == "normal", Item.state == "open").limit(4)).all()
    for item, reason in zip(waiting, ("needs domain knowledge", "the question is cut off", "offensive"), strict=False):
        for person in list(people.values())[:3]:
            skip(session, item, person, reason, NOW + 10 * DAY)
        item.state = "review"
    flag(session, waiting[0], people["chidi"], "personal data", "Names a private person with their address.")
    flag(session, waiting[-1], people["amira"], "other", "The answer is in another language.")

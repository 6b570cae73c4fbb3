"""People, items and rankings for the tests of the collection server."""

import dataclasses
from collections.abc import Callable
from uuid import NAMESPACE_DNS, uuid4, uuid5

from sqlalchemy import select

from reward.collect.ranking import annotations, queue
from reward.collect.ranking.items import Added, NewItem, NewResponse, add_items
from reward.collect.ranking.submissions import parse_submission
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotation, Annotator, Item, Response

NOW = 1_000_000.0


def add_annotator(session, handle: str, role: str = "annotator") -> Annotator:
    """Somebody who works here, without a password: sign-in has tests of its own.

    The id follows from the handle, so that gold items come at the same turns in each run.
    """
    names = {"password_hash": "", "status": "active", "created_at": NOW}
    annotator = Annotator(id=uuid5(NAMESPACE_DNS, handle).hex, handle=handle, role=role, **names)
    session.add(annotator)
    session.flush()
    return annotator


def add_people(database: Database, *handles: str) -> list[Annotator]:
    with database.write() as session:
        return [add_annotator(session, handle) for handle in handles]


def new_item(i: int, k: int = 3, **options) -> NewItem:
    """Prompt i with the answers "i.0" to "i.(k-1)", of policies "policy 0" to "policy (k-1)"."""
    responses = [NewResponse(f"{i}.{j}", {"policy": f"policy {j}"}) for j in range(k)]
    return NewItem([{"role": "user", "content": f"Prompt {i}?"}], responses, f"file:{i}", **options)


def add_new_items(database: Database, n: int, k: int = 3, first: int = 0, now: float = NOW, **options) -> Added:
    """n items of k answers in the queue, made with new_item()."""
    with database.write() as session:
        items = [new_item(i, k, **options) for i in range(first, first + n)]
        return add_items(session, items, "command line", now)


def body(work: queue.Work, order: Callable = lambda text: text, **others) -> dict:
    """What the page sends: the answers ranked by order(text), the least first; equal ones are tied."""
    values = sorted({order(text) for _, text in work.responses})
    return {"ranks": {one: values.index(order(text)) + 1 for one, text in work.responses}, **others}


def do(database: Database, function: Callable, *arguments):
    """What a service function gives; what it wrote is committed."""
    with database.write() as session:
        return function(session, *arguments)


def skip(database: Database, annotator: Annotator, work: queue.Work, reason="I do not know", now=NOW) -> None:
    do(database, queue.skip, annotator, work.slot_id, reason, now)


def progress(database: Database, annotator: Annotator, now: float = NOW) -> tuple[int, int]:
    """(what this person has done, what is left for them)."""
    return dataclasses.astuple(do(database, queue.progress, annotator, now))


def take(database: Database, annotator: Annotator, now: float = NOW) -> queue.Work | queue.NoWork:
    return do(database, queue.next_work, annotator, now)


def hand_in(
    database: Database, annotator: Annotator, work: queue.Work, now: float = NOW + 60, key: str | None = None, **said
) -> Annotation:
    """Submits the work ranked as body() says, or as said."""
    submission = parse_submission(body(work) | said)
    with database.write() as session:
        return annotations.submit(session, annotator, work.slot_id, submission, key or uuid4().hex, now)


def add_ranked_items(
    database: Database, n: int, k: int = 3, handles: tuple[str, ...] = ("ann",), order: Callable = lambda text: text
) -> list[Annotation]:
    """n new items, ranked by order(text) of the answers by people made here: all that is for them, a minute each."""
    add_new_items(database, n, k)
    made, now = [], NOW
    for annotator in add_people(database, *handles):
        while isinstance(work := take(database, annotator, now), queue.Work):
            said = body(work, order)
            made.append(hand_in(database, annotator, work, now + 60, ranks=said["ranks"], active_seconds=50.0))
            now += 61
    return made


def texts_by_rank(database: Database, annotation: Annotation) -> dict[str, int | None]:
    """The ranks of an annotation by the text of the answer."""
    with database.read() as session:
        responses = session.scalars(select(Response).where(Response.id.in_(annotation.ranks)))
        return {response.text: annotation.ranks[response.id] for response in responses}


def items_of(database: Database, **wanted) -> list[Item]:
    with database.read() as session:
        return list(session.scalars(select(Item).filter_by(**wanted)))

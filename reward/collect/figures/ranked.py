"""The rankings that count, read from the database as columns: tens of thousands take seconds, and little memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from reward.collect.figures.agreement import Rankings, by_answer, grid, ids
from reward.collect.figures.screens import Shown
from reward.collect.ranking.annotations import is_current
from reward.collect.store.tables import Annotation, Item

CHUNK = 2000  # rows that are in memory as they came


@dataclass(frozen=True)
class Ranked:
    """N current annotations, of whatever kind of item, each with what its item is."""

    items: np.ndarray  # [N] see agreement.ids, as of the next three
    annotators: np.ndarray  # [N]
    kinds: np.ndarray  # [N] of the item: normal, gold, repeat
    repeats: np.ndarray  # [N] the item that this one is a repeat of, or nothing
    num_answers: np.ndarray  # [N] K
    ranks: np.ndarray  # [N, M] as in agreement.Rankings
    gold: np.ndarray  # [N, M] the right ranks, in the same order of the answers; NaN where the item is no gold item
    places: np.ndarray  # [N, M] as in screens.Shown
    num_unacceptable: np.ndarray  # [N]
    seconds: np.ndarray  # [N]
    not_rankable: np.ndarray  # [N] bool

    def where(self, wanted: np.ndarray) -> "Ranked":
        return Ranked(*(column[wanted] for column in vars(self).values()))

    def is_of(self, kind: str) -> np.ndarray:
        """Which are of items of this kind: [N]."""
        return self.kinds == kind.encode()

    def rankings(self) -> Rankings:
        return Rankings(self.items, self.annotators, self.num_answers, self.ranks)

    def shown(self) -> Shown:
        return Shown(self.places, self.num_answers, self.num_unacceptable, self.seconds, self.not_rankable)


def read_ranked(session: Session, *wanted: ColumnElement[bool]) -> Ranked:
    """The latest revision of every submitted ranking, without cancelled items; item by item, always in one order."""
    one = Annotation
    columns = (one.item_id, one.annotator_id, Item.kind, Item.repeat_of, one.ranks, Item.gold_ranks, one.display_order)
    found = select(*columns, one.unacceptable, one.active_seconds, one.not_rankable).join(Item, one.item_id == Item.id)
    found = found.where(is_current(), Item.state != "cancelled", *wanted).order_by(one.item_id, one.slot_id)
    chunks = session.execute(found.execution_options(yield_per=CHUNK)).partitions()
    parts = [_part([]), *map(_part, chunks)]
    return Ranked(*(np.concatenate(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))


def _part(rows: Sequence) -> Ranked:
    items, people, kinds, repeats, ranks, gold, orders, refused, seconds, why_not = _columns(rows, 10)
    num_answers, by_rank = grid(map(by_answer, ranks))
    _, places = grid([given[answer] for answer in order] for given, order in zip(ranks, orders, strict=True))
    return Ranked(
        *map(ids, (items, people, kinds, repeats)),
        num_answers,
        by_rank,
        grid(by_answer(right or {}) for right in gold)[1],
        places,
        np.array(list(map(len, refused)), int),
        np.array(seconds, float),
        np.array([why is not None for why in why_not], bool),
    )


def _columns(rows: Sequence, number: int) -> Iterable[tuple]:
    return zip(*rows, strict=True) if rows else [()] * number

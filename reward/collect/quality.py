"""What the rankings of a collection say about agreement, annotators and progress: from the database to reports.

Reports are dicts for JSON; what is undefined is None. FIGURE: {"value", "low", "high"}; SHARE: a FIGURE with "num".
Nobody is removed: where the lead paused somebody, agreement leaves that person's rankings out and counts them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from statistics import median

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from reward.collect import screens
from reward.collect.agreement import NUM_BOOTSTRAP, Ranking, Two, agreement, all_twos, pair_figure
from reward.collect.annotations import is_current
from reward.collect.items import settings_of
from reward.collect.screens import Shown
from reward.collect.settings import Settings
from reward.collect.tables import Annotation, Annotator, Flag, Item, Skip, Slot
from reward.report import interval


@dataclass(frozen=True)
class Ranked:
    """A current annotation with its item and its annotator."""

    annotation: Annotation
    item: Item
    annotator: Annotator

    def ranking(self) -> Ranking:
        return Ranking(self.item.id, self.annotator.id, self.annotation.ranks)

    def shown(self) -> Shown:
        one = self.annotation
        return Shown(one.ranks, one.display_order, one.unacceptable, one.active_seconds, bool(one.not_rankable))


def current_rankings(session: Session) -> list[Ranked]:
    """The latest revision of every submitted ranking, the oldest submission first, without cancelled items."""
    found = select(Annotation, Item, Annotator).where(is_current(), Item.state != "cancelled")
    found = found.join(Item, Annotation.item_id == Item.id).join(Annotator, Annotation.annotator_id == Annotator.id)
    found = found.order_by(Annotation.submitted_at, Annotation.id)
    return [Ranked(*row) for row in session.execute(found)]


def without_paused(ranked: Iterable[Ranked]) -> list[Ranked]:
    return [one for one in ranked if one.annotator.status != "paused"]


# -- agreement --


def agreement_report(session: Session, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """`agreement` over the items that are handed out to all: gold items, chosen to be clear, would raise it.

    Also num_rankings, and of those left out: num_paused, num_not_rankable.
    """
    ranked = [one for one in current_rankings(session) if one.item.kind == "normal"]
    active = without_paused(ranked)
    kept = [one for one in active if not one.annotation.not_rankable]
    return {
        **agreement([one.ranking() for one in kept], num_bootstrap, seed),
        "num_rankings": len(kept),
        "num_paused": len(ranked) - len(active),
        "num_not_rankable": len(active) - len(kept),
    }


# -- annotators --


def annotator_report(session: Session, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """{"annotators": [figures of each who ranked or skipped], "team": {...}}.

    id, annotator (handle), status, num_rankings, num_not_rankable
    gold, self_consistency        SHARE of pairs, "num_items"
    agreement                     FIGURE with the others' rankings of the same items, "num_pairs"
    first_shown_best, displayed_order_kept   SHARE of rankings, "expected" by chance, "p"
    seconds                       {"median", "low", "high": half lie between, "num", "histogram"}
    tied_pairs, unacceptable, skips  SHARE of pairs, of answers, of what was handed out
    reasons                       why somebody should look, in words; empty where nothing calls for it
    team: best_by_position, seconds, tied_pairs, unacceptable of all together
    """
    ranked = current_rankings(session)
    twos = all_twos(one.ranking() for one in ranked if one.item.kind == "normal")
    skips = Counter(session.scalars(select(Skip.annotator_id)))
    figure = partial(interval, num_bootstrap=num_bootstrap, seed=seed)
    rows = []
    for person in session.scalars(select(Annotator).order_by(Annotator.handle)):
        own = [one for one in ranked if one.annotator.id == person.id]
        if own or skips[person.id]:
            rows.append(annotator_figures(person, own, twos, skips[person.id], figure))
    return {"annotators": with_reasons(rows, settings_of(session)), "team": team_figures(ranked)}


def annotator_figures(person: Annotator, own: list[Ranked], twos: list[Two], num_skips: int, figure) -> dict:
    shown = [one.shown() for one in own]
    return {
        "id": person.id,
        "annotator": person.handle,
        "status": person.status,
        "num_rankings": len(own),
        "num_not_rankable": sum(one.not_rankable for one in shown),
        "gold": screens.gold_accuracy(against_gold(own)),
        "self_consistency": screens.self_consistency(against_earlier(own)),
        "agreement": pair_figure([two for two in twos if person.id in two.annotators], Two.alike, figure),
        "first_shown_best": screens.first_shown_best(shown),
        "displayed_order_kept": screens.displayed_order_kept(shown),
        "seconds": screens.seconds(shown),
        "tied_pairs": screens.tied_pairs(shown),
        "unacceptable": screens.unacceptable_answers(shown),
        "skips": screens.wilson(num_skips, num_skips + len(own)),
    }


def against_gold(own: list[Ranked]) -> list[tuple[dict, dict]]:
    """(gold ranks, own ranks) of each gold item that somebody ranked."""
    return [(one.item.gold_ranks, one.annotation.ranks) for one in own if one.item.kind == "gold"]


def against_earlier(own: list[Ranked]) -> list[tuple[dict, dict]]:
    """(first ranks, ranks on the repeat) of each item that somebody got twice."""
    first = {one.item.id: one.annotation.ranks for one in own}
    repeats = [one for one in own if one.item.kind == "repeat" and one.item.repeat_of in first]
    return [(first[one.item.repeat_of], one.annotation.ranks) for one in repeats]


def with_reasons(rows: list[dict], settings: Settings) -> list[dict]:
    medians = [row["seconds"]["median"] for row in rows if row["seconds"]["num"] >= screens.FEW]
    usual = median(medians) if medians else None
    return [row | {"reasons": screens.reasons_to_look(row, usual, settings.min_seconds)} for row in rows]


def team_figures(ranked: list[Ranked]) -> dict:
    shown = [one.shown() for one in ranked]
    return {
        "best_by_position": screens.best_by_position(shown),
        "seconds": screens.seconds(shown),
        "tied_pairs": screens.tied_pairs(shown),
        "unacceptable": screens.unacceptable_answers(shown),
    }


# -- progress --


def progress_report(session: Session) -> dict:
    """{"items": {state: count}, "reported", "done_slots", "all_slots", "num_annotations", "by_day", "by_annotator"}.

    reported: items of any kind and state but cancelled that somebody reported a problem with.

    Slots are those of normal items: gold items and repeats are made as they are handed out, and would move the goal.
    by_day: [{"day": "2026-01-31" (UTC), "num"}] without gaps; by_annotator: [{"annotator", "num"}], most first.
    """
    items = select(Item.state, func.count()).where(Item.kind == "normal").group_by(Item.state)
    slots = select(Slot.state, func.count()).join(Item, Slot.item_id == Item.id)
    slots = slots.where(Item.kind == "normal", Item.state != "cancelled").group_by(Slot.state)
    by_state = dict(session.execute(slots).all())
    reported = select(func.count(Flag.item_id.distinct())).join(Item, Flag.item_id == Item.id)
    first = select(Annotator.handle, Annotation.submitted_at).join(Annotation).where(Annotation.revision == 1)
    submitted = session.execute(first).all()
    return {
        "items": dict(session.execute(items).all()),
        "reported": session.scalar(reported.where(Item.state != "cancelled")),
        "done_slots": by_state.get("done", 0),
        "all_slots": sum(by_state.values()),
        "num_annotations": len(submitted),
        "by_day": by_day([at for _, at in submitted]),
        "by_annotator": [{"annotator": who, "num": n} for who, n in Counter(who for who, _ in submitted).most_common()],
    }


def by_day(times: list[float]) -> list[dict]:
    """How many of the times, seconds since 1970, fall on each day from the first to the last."""
    days = np.array([datetime.fromtimestamp(at, UTC).date() for at in times], dtype="datetime64[D]")
    if not len(days):
        return []
    all_days = np.arange(days.min(), days.max() + 1)
    counts = np.bincount((days - days.min()).astype(int), minlength=len(all_days))
    return [{"day": str(day), "num": int(num)} for day, num in zip(all_days, counts, strict=True)]

"""What the rankings of a collection say about agreement, annotators and progress: from the database to reports.

Reports are dicts for JSON; what is undefined is None. FIGURE: {"value", "low", "high"}; SHARE: a FIGURE with "num".
Nobody is removed: where the lead paused somebody, agreement leaves that person's rankings out and counts them.
"""

from functools import partial
from statistics import median

import numpy as np
from sqlalchemy import ColumnElement, Integer, cast, func, select
from sqlalchemy.orm import Session

from reward.collect.figures import screens
from reward.collect.figures.agreement import NUM_BOOTSTRAP, Twos, agreement, all_twos, ids, pair_figure, ratio_figure
from reward.collect.figures.ranked import Ranked, read_ranked
from reward.collect.store.collection import settings_of
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Annotator, Flag, Item, Skip, Slot

DAY = 86400  # seconds


def is_paused(session: Session, ranked: Ranked) -> np.ndarray:
    """Which rankings are of people whom the lead paused: [N]."""
    paused = session.scalars(select(Annotator.id).where(Annotator.status == "paused"))
    return np.isin(ranked.annotators, ids(paused))


# -- agreement --


def agreement_report(session: Session, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """`agreement` over the items that are handed out to all: gold items, chosen to be clear, would raise it.

    Also num_rankings, and of those left out: num_paused, num_not_rankable.
    """
    return agreement_of(session, read_ranked(session, Item.kind == "normal"), num_bootstrap, seed)


def agreement_of(session: Session, ranked: Ranked, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """`agreement_report` from the rankings that count, of items of any kind."""
    is_normal, paused = ranked.is_of("normal"), is_paused(session, ranked)
    kept = is_normal & ~paused & ~ranked.not_rankable
    return {
        **agreement(ranked.rankings().where(kept), num_bootstrap, seed),
        "num_rankings": int(kept.sum()),
        "num_paused": int((is_normal & paused).sum()),
        "num_not_rankable": int((is_normal & ~paused & ranked.not_rankable).sum()),
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
    return annotators_of(session, read_ranked(session), num_bootstrap, seed)


def annotators_of(session: Session, ranked: Ranked, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """`annotator_report` from the rankings that count."""
    twos = all_twos(ranked.rankings().where(ranked.is_of("normal")))
    skips = dict(session.execute(select(Skip.annotator_id, func.count()).group_by(Skip.annotator_id)).all())
    figure = partial(ratio_figure, num_bootstrap=num_bootstrap, seed=seed)
    rows = []
    for person in session.scalars(select(Annotator).order_by(Annotator.handle)):
        own, num_skips = ranked.where(ranked.annotators == person.id.encode()), skips.get(person.id, 0)
        if len(own.items) or num_skips:
            with_others = twos.where((twos.annotators == person.id.encode()).any(axis=1))
            rows.append(annotator_figures(person, own, with_others, num_skips, figure))
    return {"annotators": with_reasons(rows, settings_of(session)), "team": team_figures(ranked)}


def annotator_figures(person: Annotator, own: Ranked, twos: Twos, num_skips: int, figure) -> dict:
    shown, num = own.shown(), len(own.items)
    return {
        "id": person.id,
        "annotator": person.handle,
        "status": person.status,
        "num_rankings": num,
        "num_not_rankable": int(own.not_rankable.sum()),
        "gold": screens.gold_accuracy(*against_gold(own)),
        "self_consistency": screens.self_consistency(*against_earlier(own)),
        "agreement": pair_figure(twos, figure),
        "first_shown_best": screens.first_shown_best(shown),
        "displayed_order_kept": screens.displayed_order_kept(shown),
        "seconds": screens.seconds(shown),
        "tied_pairs": screens.tied_pairs(shown),
        "unacceptable": screens.unacceptable_answers(shown),
        "skips": screens.wilson(num_skips, num_skips + num),
    }


def against_gold(own: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """(gold ranks, own ranks) of each gold item that somebody ranked."""
    gold = own.where(own.is_of("gold"))
    return gold.gold, gold.ranks


def against_earlier(own: Ranked) -> tuple[np.ndarray, np.ndarray]:
    """(first ranks, ranks on the repeat) of each item that somebody got twice; own: in the order of the items."""
    again = own.where(np.isin(own.repeats, own.items))
    return own.ranks[np.searchsorted(own.items, again.repeats)], again.ranks


def with_reasons(rows: list[dict], settings: Settings) -> list[dict]:
    medians = [row["seconds"]["median"] for row in rows if row["seconds"]["num"] >= screens.FEW]
    usual = median(medians) if medians else None
    return [row | {"reasons": screens.reasons_to_look(row, usual, settings.min_seconds)} for row in rows]


def team_figures(ranked: Ranked) -> dict:
    shown = ranked.shown()
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
    day = cast(_whole(session, Annotation.submitted_at / DAY), Integer)
    days = select(day, func.count()).where(Annotation.revision == 1).group_by(day).order_by(day)
    people = select(Annotator.handle, func.count()).join(Annotation).where(Annotation.revision == 1)
    people = people.group_by(Annotator.handle).order_by(func.count().desc(), Annotator.handle)
    by_annotator = session.execute(people).all()
    return {
        "items": dict(session.execute(items).all()),
        "reported": session.scalar(reported.where(Item.state != "cancelled")),
        "done_slots": by_state.get("done", 0),
        "all_slots": sum(by_state.values()),
        "num_annotations": sum(num for _, num in by_annotator),
        "by_day": by_day(dict(session.execute(days).all())),
        "by_annotator": [{"annotator": who, "num": num} for who, num in by_annotator],
    }


def _whole(session: Session, positive: ColumnElement[float]) -> ColumnElement:
    """Rounded down: PostgreSQL's casts round to the nearest, and not every SQLite has a floor."""
    return positive if session.get_bind().dialect.name == "sqlite" else func.floor(positive)


def by_day(counts: dict[int, int]) -> list[dict]:
    """The counts of days since 1970 as rows, from the first to the last without gaps."""
    all_days = range(min(counts, default=0), max(counts, default=-1) + 1)
    return [{"day": str(np.datetime64(day, "D")), "num": counts.get(day, 0)} for day in all_days]

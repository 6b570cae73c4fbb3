"""Pairs of answers from rankings, for formats that hold pairs only, and rankings put together again from such pairs."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, combinations, pairwise

from reward.collect.formats.canonical import competition, item_id
from reward.collect.refusals import Refusal

STRATEGIES = ("all", "adjacent", "best_vs_rest", "best_vs_worst")
TIES = ("drop", "soft")
ALL_TIED = "with all answers tied"


@dataclass(frozen=True)
class Pair:
    row: dict  # the canonical row it was taken from
    chosen: int  # index of a response
    rejected: int
    rank_gap: int  # by how many ranks; 0 is a tie
    weight: float  # 1 / number of pairs of its row

    def text(self, side: str) -> str:
        return self.row["responses"][getattr(self, side)]


def pairs_of(rows: Iterable[dict], strategy: str = "all", ties: str = "drop") -> Iterator[Pair]:
    """The pairs of every row, in its order: better answers first, then (ties=soft) each two tied ones once.

    all: every two answers that are not tied. adjacent: of neighbouring ranks. best_vs_rest and best_vs_worst: as they
    say. Answers that are not ranked are in no pair.
    """
    if ties == "soft" and strategy != "all":
        raise Refusal(f"ties=soft with strategy={strategy}: ties are pairs of strategy=all only; choose ties=drop")
    for row in rows:
        ranks = row["ranks"]
        found = ordered(ranks, strategy) + (tied(ranks) if ties == "soft" else [])
        for chosen, rejected in found:
            yield Pair(row, chosen, rejected, ranks[rejected] - ranks[chosen], 1 / len(found))


def why_no_pair(row: dict, strategy: str = "all", ties: str = "drop") -> str | None:
    """Why a row has no pairs; None where it has any, which every strategy then finds."""
    return ALL_TIED if ties == "drop" and len({rank for rank in row["ranks"] if rank is not None}) < 2 else None


def ordered(ranks: list[int | None], strategy: str) -> list[tuple[int, int]]:
    """(better, worse) indices of the pairs that a strategy takes."""
    levels = sorted({rank for rank in ranks if rank is not None})
    wanted = {
        "all": list(combinations(levels, 2)),
        "adjacent": list(pairwise(levels)),
        "best_vs_rest": [(levels[0], level) for level in levels[1:]],
        "best_vs_worst": [(levels[0], levels[-1])] if len(levels) > 1 else [],
    }[strategy]
    at = {level: [i for i, rank in enumerate(ranks) if rank == level] for level in levels}
    return [(i, j) for better, worse in wanted for i in at[better] for j in at[worse]]


def tied(ranks: list[int | None]) -> list[tuple[int, int]]:
    return [(i, j) for i, j in combinations(range(len(ranks)), 2) if ranks[i] is not None and ranks[i] == ranks[j]]


class Votes:
    """What all rows say of each two answers to a prompt; a tie is half a vote for each. Holds digests, not texts."""

    def __init__(self, rows: Iterable[dict]):
        self._rankings = defaultdict(list)  # prompt -> {answer: rank} of each row
        for row in rows:
            ranked = zip(row["responses"], row["ranks"], strict=True)
            self._rankings[_digest(row)].append({_digest(text): rank for text, rank in ranked if rank is not None})

    def share(self, pair: Pair) -> float:
        """The share of the votes on a pair's answers that the chosen one got, that of its own row among them."""
        sides = [_digest(pair.text(side)) for side in ("chosen", "rejected")]
        said = [ranks for ranks in self._rankings[_digest(pair.row)] if all(side in ranks for side in sides)]
        return sum(_vote(*(ranks[side] for side in sides)) for ranks in said) / len(said)


def _digest(said: str | dict) -> bytes:
    """Of an answer, or of a row's prompt."""
    text = said if isinstance(said, str) else json.dumps(said["prompt"])
    return blake2b(text.encode(), digest_size=12).digest()


def _vote(rank: int, other: int) -> float:
    return 1.0 if rank < other else 0.5 if rank == other else 0.0


# Back to rankings


def rejoined(rows: Iterable[dict]) -> list[dict]:
    """Rows of two answers, those of one item and annotator put together again as one ranking, in order of appearance.

    What each pair says of its rank_gap tells the ranks of all; pairs without item_id or rank_gap, or which do not
    agree or do not hang together, stay pairs.
    """
    together: dict[tuple, list[dict]] = defaultdict(list)
    for n, row in enumerate(rows):
        known = item_id(row) is not None and "rank_gap" in row["meta"]
        key = (item_id(row), row.get("annotator"), json.dumps(row["prompt"])) if known else (n,)
        together[key].append(row)
    return [row for pairs in together.values() for row in _joined(pairs)]


def _joined(pairs: list[dict]) -> list[dict]:
    """One row of the pairs' answers, best first; the pairs themselves where they make none. All less their rank_gap."""
    plain = [{**pair, "meta": _without_gap(pair)} if "meta" in pair else pair for pair in pairs]
    plain = [{name: value for name, value in pair.items() if value != {}} for pair in plain]
    places = _places(pairs) if len(pairs) > 1 else None
    if places is None:
        return plain
    responses = sorted(places, key=places.get)  # stable: ties stay in order of appearance
    row = {**plain[0], "responses": responses, "ranks": competition(places[text] for text in responses)}
    if "sources" in row["meta"]:
        known = (zip(pair["responses"], pair["meta"]["sources"], strict=True) for pair in plain)
        sources = dict(chain.from_iterable(known))
        row["meta"] = {**row["meta"], "sources": [sources[text] for text in responses]}
    return [row]


def _without_gap(pair):
    return {name: value for name, value in pair["meta"].items() if name != "rank_gap"}


def _places(pairs: list[dict]) -> dict[str, int] | None:
    """answer -> its rank less the first answer's, in order of appearance; None where the pairs do not settle it."""
    gaps: dict[str, dict[str, int]] = defaultdict(dict)
    for pair in pairs:
        (chosen, rejected), gap = pair["responses"], pair["meta"]["rank_gap"]
        if gaps[chosen].setdefault(rejected, gap) != gap or gaps[rejected].setdefault(chosen, -gap) != -gap:
            return None
    first = next(iter(gaps))
    places, reached = {first: 0}, [first]
    for text in reached:
        for other, gap in gaps[text].items():
            if places.setdefault(other, places[text] + gap) != places[text] + gap:
                return None
            if other not in reached:
                reached.append(other)
    return {text: places[text] for text in gaps} if len(places) == len(gaps) else None

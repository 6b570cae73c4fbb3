"""What one annotator's rankings say about how they were made: figures, and reasons to look that prove nothing.

Pure functions over Shown. Intervals of shares are Wilson's 95 % intervals, which take each pair or ranking for itself;
those of one item are not quite independent, so they are a little narrow. SHARE: {"value", "low", "high", "num"}.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.special import factorial
from scipy.stats import binom

from reward.collect.figures.agreement import Compared, grid, orders
from reward.report.intervals import wilson_interval

SECONDS_EDGES = (0, 5, 10, 20, 40, 80, 160, 320)  # of the histogram; the last bin has no upper end

# When somebody needs a look.
SURPRISING = 0.001  # p value under chance: of 50 annotators, a false alarm in one collection of 20
LOW_GOLD = 0.7  # pair accuracy, of which the whole interval is below; people agree in about 0.73 of ordinary pairs
LOW_CONSISTENCY = 0.6  # pair agreement with oneself
HASTY = 1 / 3  # median seconds over the median of all annotators' medians
MANY_SKIPS = 0.3  # share of what was handed out, of which the whole interval is above
FEW = 10  # rankings or pairs, below which they are no reason


@dataclass(frozen=True)
class Shown:
    """N rankings as columns, and how they came about."""

    places: np.ndarray  # [N, M] rank of the answer shown first, second, ...; NaN as in agreement.Rankings
    num_answers: np.ndarray  # [N] K
    num_unacceptable: np.ndarray  # [N] of these
    seconds: np.ndarray  # [N] active
    not_rankable: np.ndarray  # [N] bool

    @classmethod
    def of(cls, rows: Iterable[tuple[list, int, float, bool]]) -> "Shown":
        """From (ranks in the order of display, how many answers are unacceptable, seconds, not_rankable)."""
        rows = list(rows)
        ranks, *others = zip(*rows, strict=True) if rows else ((), (), (), ())
        num_answers, places = grid(ranks)
        return cls(places, num_answers, *map(np.array, others, (int, float, bool)))

    def where(self, wanted: np.ndarray) -> "Shown":
        return Shown(*(column[wanted] for column in vars(self).values()))

    def with_order(self) -> "Shown":
        """Those that rank any answer above another."""
        unranked = np.isnan(self.places)
        highest = np.where(unranked, -np.inf, self.places).max(axis=1)
        return self.where(np.where(unranked, np.inf, self.places).min(axis=1) < highest)

    def num_best(self) -> np.ndarray:
        """How many are (tied) best: [N]."""
        return (self.places == 1).sum(axis=1)


def wilson(successes: float, num: int) -> dict:
    """SHARE: successes of num, of which some may be halves."""
    if num == 0:
        return {"value": None, "low": None, "high": None, "num": 0}
    return {"value": successes / num, **wilson_interval(successes / num, num), "num": num}


# -- against what is known --


def gold_accuracy(gold: np.ndarray, ranks: np.ndarray) -> dict:
    """SHARE of the pairs that the gold ranks order which a person orders alike, a tie being half right.

    gold, ranks: [N, M] of the same answers.
    """
    (right, known), (given, is_ranked) = orders(gold), orders(ranks)
    judged = known & is_ranked & (right != 0)
    credit = 1 - np.abs(right - given)[judged] / 2
    return {**wilson(float(credit.sum()), len(credit)), "num_items": len(gold)}


def self_consistency(first: np.ndarray, again: np.ndarray) -> dict:
    """SHARE of pairs that a person orders alike both times, of those ordered both times. first, again: ranks [N, M]."""
    both = Compared.of(first, again)
    return {**wilson(float(both.alike.sum()), int(both.ordered.sum())), "num_items": len(first)}


# -- against chance --


def first_shown_best(rankings: Shown) -> dict:
    """SHARE of rankings in which the answer shown first is (one of) the best, with "expected" by chance and "p".

    The order of display is random, so the first of K is among b tied best with probability b / K, whatever the person
    thinks: "p" is the two-sided exact test of the count against these. Rankings that tie all say nothing.
    """
    them = rankings.with_order()
    count = int((them.places[:, 0] == 1).sum())
    return _against_chance(count, them.num_best() / them.num_answers, two_sided_p)


def displayed_order_kept(rankings: Shown) -> dict:
    """SHARE of rankings that keep the displayed order from best to worst, with "expected" by chance and one-sided "p".

    Of K! orders of display, those keep it that permute tied answers only. Rankings with unranked answers are left out.
    """
    them = rankings.with_order()
    them = them.where((~np.isnan(them.places)).sum(axis=1) == them.num_answers)
    kept = ~(them.places[:, 1:] < them.places[:, :-1]).any(axis=1)
    alike = np.tril(them.places[:, :, None] == them.places[:, None, :]).sum(axis=2)  # 1 to b for b tied answers
    ways = np.maximum(alike, 1).prod(axis=1)
    return _against_chance(int(kept.sum()), ways / factorial(them.num_answers), upper_p)


def _against_chance(count: int, chances: np.ndarray, test) -> dict:
    expected = float(np.mean(chances)) if len(chances) else None
    p = test(count, chances) if len(chances) else None
    return {**wilson(count, len(chances)), "expected": expected, "p": p}


def two_sided_p(count: int, chances: Sequence[float]) -> float:
    """How probable a count as improbable as this or more is, of independent events of these chances."""
    mass = distribution(chances)
    return float(min(mass[mass <= mass[count] * (1 + 1e-7)].sum(), 1.0))  # as scipy.stats.binomtest has it


def upper_p(count: int, chances: Sequence[float]) -> float:
    """How probable a count as high as this or higher is."""
    return float(min(distribution(chances)[count:].sum(), 1.0))


def distribution(chances: Sequence[float]) -> np.ndarray:
    """The probability of each number of events, 0 to n, of n independent ones with these chances [n + 1].

    Events of one chance are binomial, and there are few chances: sums of binomials take no time, where scipy's
    poisson_binom takes each event for itself.
    """
    groups = zip(*np.unique(chances, return_counts=True), strict=True)
    return reduce(np.convolve, [binom.pmf(np.arange(num + 1), num, chance) for chance, num in groups])


def best_by_position(rankings: Shown) -> list[dict]:
    """[{"position", "value", "expected", "num"}]: how often the answer shown first, second, ... is the best.

    Answers tied for best share the count. num: rankings with so many answers; expected: the mean of their 1 / K.
    """
    ordered, rows = rankings.with_order(), []
    for position in range(ordered.num_answers.max(initial=0)):
        them = ordered.where(ordered.num_answers > position)
        best, expected = (them.places[:, position] == 1) / them.num_best(), 1 / them.num_answers
        figures = {"value": float(np.mean(best)), "expected": float(np.mean(expected)), "num": len(best)}
        rows.append({"position": position + 1, **figures})
    return rows


# -- habits --


def tied_pairs(rankings: Shown) -> dict:
    """SHARE of ranked pairs that are tied."""
    places, num_ranked = rankings.places, (~np.isnan(rankings.places)).sum(axis=1)
    alike = (places[:, :, None] == places[:, None, :]).sum()  # each two twice, and each with itself
    return wilson(int(alike - num_ranked.sum()) // 2, int((num_ranked * (num_ranked - 1)).sum()) // 2)


def unacceptable_answers(rankings: Shown) -> dict:
    """SHARE of answers marked unacceptable."""
    return wilson(int(rankings.num_unacceptable.sum()), int(rankings.num_answers.sum()))


def seconds(rankings: Shown) -> dict:
    """{"median", "low", "high", "num", "histogram"}: active seconds; low, high: half of them lie between."""
    spent = rankings.seconds
    low, median, high = map(float, np.quantile(spent, [0.25, 0.5, 0.75])) if len(spent) else (None, None, None)
    histogram = np.histogram(spent, [*SECONDS_EDGES, np.inf])[0].tolist()
    return {"median": median, "low": low, "high": high, "num": len(spent), "histogram": histogram}


# -- reasons to look --


def reasons_to_look(figures: Mapping, usual_seconds: float | None, min_seconds: float = 0.0) -> list[str]:
    """What in an annotator's figures calls for a look, in words; empty when nothing does."""
    checks = (_gold_low, _inconsistent, _prefers_a_position, _keeps_the_order, _skips_much)
    found = [check(figures) for check in checks] + [_hasty(figures, usual_seconds, min_seconds)]
    return [reason for reason in found if reason]


def _gold_low(figures):
    gold = figures["gold"]
    if gold["num"] >= FEW and gold["high"] < LOW_GOLD:
        return f"orders {_percent(gold)} of gold pairs right, at most {100 * gold['high']:.0f} %"


def _inconsistent(figures):
    again = figures["self_consistency"]
    if again["num"] >= FEW and again["high"] < LOW_CONSISTENCY:
        return f"orders {_percent(again)} of repeated pairs as before, at most {100 * again['high']:.0f} %"


def _prefers_a_position(figures):
    first = figures["first_shown_best"]
    if first["num"] and first["p"] < SURPRISING:
        return f"ranks the answer shown first best in {_percent(first)}, by chance {100 * first['expected']:.0f} %"


def _keeps_the_order(figures):
    kept = figures["displayed_order_kept"]
    if kept["num"] and kept["p"] < SURPRISING:
        return f"leaves the answers in the order shown in {_percent(kept)}, by chance {100 * kept['expected']:.0f} %"


def _skips_much(figures):
    skips = figures["skips"]
    if skips["num"] and skips["low"] > MANY_SKIPS:
        return f"skips {_percent(skips)} of what is handed out"


def _hasty(figures, usual_seconds, min_seconds):
    spent = figures["seconds"]
    least = max(min_seconds, HASTY * (usual_seconds or 0))
    if spent["num"] >= FEW and spent["median"] < least:
        return f"takes {spent['median']:.0f} s per item (median), less than {least:.0f} s"


def _percent(share):
    return f"{100 * share['value']:.0f} %"

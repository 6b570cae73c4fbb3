"""What one annotator's rankings say about how they were made: figures, and reasons to look that prove nothing.

Pure functions over Shown. Intervals of shares are Wilson's 95 % intervals, which take each pair or ranking for itself;
those of one item are not quite independent, so they are a little narrow. SHARE: {"value", "low", "high", "num"}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import factorial, prod, sqrt

import numpy as np
from scipy.stats import norm, poisson_binom

from reward.collect.agreement import Ranking, Two, two_of

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
    """One ranking and how it came about."""

    ranks: Mapping[str, int | None]  # response id -> rank: 1 is best, equal is a tie, None is not ranked
    display_order: Sequence[str]  # response ids as they were shown
    unacceptable: Sequence[str]
    seconds: float
    not_rankable: bool = False

    def places(self) -> list[int | None]:
        """Ranks in the order in which the answers were shown."""
        return [self.ranks.get(answer) for answer in self.display_order]


def wilson(successes: float, num: int) -> dict:
    """SHARE: successes of num, of which some may be halves. Wilson 1927, doi.org/10.1080/01621459.1927.10502953."""
    if num == 0:
        return {"value": None, "low": None, "high": None, "num": 0}
    share, z = successes / num, float(norm.ppf(0.975))
    centre, spread = share + z**2 / (2 * num), z * sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    low, high = ((centre + sign * spread) / (1 + z**2 / num) for sign in (-1, 1))
    return {"value": share, "low": max(low, 0.0), "high": min(high, 1.0), "num": num}


# -- against what is known --


def gold_accuracy(rankings: Sequence[tuple[Mapping, Mapping]]) -> dict:
    """SHARE of the pairs that the gold ranks order which a person orders alike, a tie being half right.

    rankings: (gold ranks, the person's ranks), each response id -> rank.
    """
    credits = [gold_credit(_two(gold, ranks)) for gold, ranks in rankings]
    right = np.concatenate([np.empty(0), *credits])
    return {**wilson(float(right.sum()), len(right)), "num_items": len(rankings)}


def gold_credit(two: Two) -> np.ndarray:
    """1, 1/2 or 0 for each pair that the first of the two orders."""
    return two.alike_with_ties()[two.orders[0] != 0]


def self_consistency(rankings: Sequence[tuple[Mapping, Mapping]]) -> dict:
    """SHARE of pairs that a person orders alike both times, of those ordered both times. rankings: (first, again)."""
    alike = np.concatenate([np.empty(0), *(_two(first, again).alike() for first, again in rankings)])
    return {**wilson(float(alike.sum()), len(alike)), "num_items": len(rankings)}


def _two(one: Mapping, other: Mapping) -> Two:
    return two_of(Ranking("", "", one), Ranking("", "", other))


# -- against chance --


def first_shown_best(rankings: Sequence[Shown]) -> dict:
    """SHARE of rankings in which the answer shown first is (one of) the best, with "expected" by chance and "p".

    The order of display is random, so the first of K is among b tied best with probability b / K, whatever the person
    thinks: "p" is the two-sided exact test of the count against these. Rankings that tie all say nothing.
    """
    places = [one.places() for one in rankings if has_order(one)]
    chances = [them.count(1) / len(them) for them in places]
    return _against_chance(sum(them[0] == 1 for them in places), chances, two_sided_p)


def displayed_order_kept(rankings: Sequence[Shown]) -> dict:
    """SHARE of rankings that keep the displayed order from best to worst, with "expected" by chance and one-sided "p".

    Of K! orders of display, those keep it that permute tied answers only. Rankings with unranked answers are left out.
    """
    places = [one.places() for one in rankings if has_order(one) and None not in one.places()]
    chances = [prod(factorial(them.count(rank)) for rank in set(them)) / factorial(len(them)) for them in places]
    return _against_chance(sum(them == sorted(them) for them in places), chances, upper_p)


def has_order(one: Shown) -> bool:
    """Whether any answer is ranked above another."""
    return len({rank for rank in one.places() if rank is not None}) > 1


def _against_chance(count: int, chances: list[float], test) -> dict:
    expected = float(np.mean(chances)) if chances else None
    return {**wilson(count, len(chances)), "expected": expected, "p": test(count, chances) if chances else None}


def two_sided_p(count: int, chances: Sequence[float]) -> float:
    """How probable a count as improbable as this or more is, of independent events of these chances."""
    mass = poisson_binom(chances).pmf(np.arange(len(chances) + 1))
    return float(min(mass[mass <= mass[count] * (1 + 1e-7)].sum(), 1.0))  # as scipy.stats.binomtest has it


def upper_p(count: int, chances: Sequence[float]) -> float:
    """How probable a count as high as this or higher is."""
    mass = poisson_binom(chances).pmf(np.arange(count, len(chances) + 1))
    return float(min(mass.sum(), 1.0))


def best_by_position(rankings: Sequence[Shown]) -> list[dict]:
    """[{"position", "value", "expected", "num"}]: how often the answer shown first, second, ... is the best.

    Answers tied for best share the count. num: rankings with so many answers; expected: the mean of their 1 / K.
    """
    places = [one.places() for one in rankings if has_order(one)]
    rows = []
    for position in range(max(map(len, places), default=0)):
        them = [p for p in places if len(p) > position]
        best = [(p[position] == 1) / p.count(1) for p in them]
        expected = float(np.mean([1 / len(p) for p in them]))
        rows.append({"position": position + 1, "value": float(np.mean(best)), "expected": expected, "num": len(them)})
    return rows


# -- habits --


def tied_pairs(rankings: Sequence[Shown]) -> dict:
    """SHARE of ranked pairs that are tied."""
    counts = [[them.count(rank) for rank in set(them) if rank is not None] for them in (r.places() for r in rankings)]
    pairs = sum(_pairs(sum(sizes)) for sizes in counts)
    return wilson(sum(_pairs(size) for sizes in counts for size in sizes), pairs)


def _pairs(num: int) -> int:
    return num * (num - 1) // 2


def unacceptable_answers(rankings: Sequence[Shown]) -> dict:
    """SHARE of answers marked unacceptable."""
    return wilson(sum(len(one.unacceptable) for one in rankings), sum(len(one.display_order) for one in rankings))


def seconds(rankings: Sequence[Shown]) -> dict:
    """{"median", "low", "high", "num", "histogram"}: active seconds; low, high: half of them lie between."""
    spent = [one.seconds for one in rankings]
    low, median, high = map(float, np.quantile(spent, [0.25, 0.5, 0.75])) if spent else (None, None, None)
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

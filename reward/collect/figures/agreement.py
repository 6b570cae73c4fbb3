"""How far annotators agree on rankings of the same answers. Pure functions over Rankings.

Legend: N rankings, K answers of an item, M the most that an item can have, P = M (M - 1) / 2 pairs of answers, T
twos of rankings of one item, I items, V values that a rank can take.

Agreement is measured in three ways, each over all twos of annotators who ranked the same item:
- pair agreement: the share of answer pairs that both order (neither ties them) and order alike. It is the figure that
  a reward model's pair accuracy is compared with: InstructGPT's labellers agree in 72.6 % (Ouyang et al. 2022, 3.4).
  With ties: over all pairs that both ranked; alike or both tied is 1, a tie against an order 1/2, opposite orders 0.
- Kendall's tau-b of the two rankings, the mean. Where one of the two ties all, it is undefined: left out and counted.
- Krippendorff's ordinal alpha; a unit is one answer, its value the rank that it got, tied answers in the middle of the
  places that they share. Undefined where all values are equal.
Without ties, tau = 2 A - 1 for pair agreement A. Rankings of one item are not independent: intervals are 95 % bootstrap
intervals over whole items. What is undefined is None, never NaN. FIGURE: {"value", "low", "high"}.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import isqrt

import numpy as np
from scipy.sparse import csr_array, vstack

from reward.collect.store.settings import MAX_ANSWERS
from reward.report.intervals import percentile_interval, ratio_interval

NUM_BOOTSTRAP = 1000
FIRST, SECOND = np.triu_indices(MAX_ANSWERS, k=1)  # the answers of each pair, [P]
CHUNK = 5_000  # twos, or items, that are looked at together: what that takes stays small, however many there are


@dataclass(frozen=True)
class Rankings:
    """N rankings as columns. The answers of an item stand in one order in all of its rankings."""

    items: np.ndarray  # [N] see `ids`
    annotators: np.ndarray  # [N]
    num_answers: np.ndarray  # [N] K of the item
    ranks: np.ndarray  # [N, M] 1 is best, equal is a tie; NaN where not ranked, and where the item has fewer answers

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, Mapping]]) -> "Rankings":
        """From (item, annotator, response id -> rank or None)."""
        rows = list(rows)
        items, annotators, ranks = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(ids(items), ids(annotators), *grid(map(by_answer, ranks)))

    def where(self, wanted: np.ndarray) -> "Rankings":
        return Rankings(*(column[wanted] for column in vars(self).values()))


def ids(names: Iterable[str | None]) -> np.ndarray:
    """[N] bytes, a quarter of what text takes; None is empty. Ids are ASCII."""
    return np.array([(name or "").encode() for name in names], dtype=bytes)


def by_answer(ranks: Mapping) -> list:
    """The ranks in one order of the answers, whoever ranked them."""
    return [ranks[answer] for answer in sorted(ranks)]


def grid(rows: Iterable[list]) -> tuple[np.ndarray, np.ndarray]:
    """(how many there are in each row [N], the rows filled up with NaN, which None becomes too [N, M])."""
    rows = list(rows)
    filled = [row + [None] * (MAX_ANSWERS - len(row)) for row in rows]
    return np.array([len(row) for row in rows], int), np.array(filled, float).reshape(-1, MAX_ANSWERS)


def agreement(rankings: Rankings, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """All measures: {"num_items", "num_annotators", "num_twos"} that agreement could be measured on, and

    pair_agreement            FIGURE, "num_pairs"
    pair_agreement_with_ties  FIGURE, "num_pairs"
    kendall_tau_b             FIGURE, "num_twos", "num_all_tied"
    krippendorff_alpha        FIGURE, "num_answers", "undefined": why it is, or None
    by_num_answers            [{"num_answers", FIGURE, "num_pairs"}]  pair agreement by the item's K
    """
    twos = all_twos(rankings)
    figure = partial(ratio_figure, num_bootstrap=num_bootstrap, seed=seed)
    return {
        "num_items": len(np.unique(twos.items)),
        "num_annotators": len(np.unique(twos.annotators)),
        "num_twos": len(twos.items),
        "pair_agreement": pair_figure(twos, figure),
        "pair_agreement_with_ties": {
            **figure(twos.alike_with_ties, twos.ranked, twos.items),
            "num_pairs": int(twos.ranked.sum()),
        },
        "kendall_tau_b": tau_figure(twos, figure),
        "krippendorff_alpha": alpha_figure(rankings, num_bootstrap, seed),
        "by_num_answers": by_num_answers(twos, figure),
    }


def ratio_figure(sums: np.ndarray, counts: np.ndarray, items: np.ndarray, num_bootstrap: int, seed: int) -> dict:
    """FIGURE of the sum of sums over the sum of counts; no interval for a single item."""
    known = counts > 0
    sums, counts, items = sums[known], counts[known], items[known]
    if len(np.unique(items)) < 2:
        return {"value": float(sums.sum() / counts.sum()) if len(sums) else None, "low": None, "high": None}
    return ratio_interval(sums, counts, num_bootstrap, seed, items)


# -- pairs of answers --


def orders(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([..., P]: 1 where the pair's first answer is better, -1 where the other is, else 0; whether both are ranked)."""
    gap = ranks[..., SECOND] - ranks[..., FIRST]
    known = ~np.isnan(gap)
    return np.sign(np.where(known, gap, 0)).astype(np.int8), known


@dataclass(frozen=True)
class Compared:
    """Twos of rankings of the same answers: how many pairs of answers, of those that both ranked."""

    ranked: np.ndarray  # [T]
    ordered: np.ndarray  # [T] of these, tied by neither
    alike: np.ndarray  # [T] of these, in the same order
    alike_with_ties: np.ndarray  # [T] sum over the ranked: alike or both tied 1, a tie against an order 1/2, else 0
    tau_b: np.ndarray  # [T] NaN where one ties all. Kendall 1945, https://doi.org/10.1093/biomet/33.3.239

    @classmethod
    def of(cls, ranks: np.ndarray, others: np.ndarray) -> "Compared":
        """ranks, others: [T, M]."""
        (one, known), (other, known_too) = orders(ranks), orders(others)
        both = known & known_too
        one, other = one * both, other * both
        ordered, product = (one != 0) & (other != 0), (one * other).sum(axis=1, dtype=float)
        untied = np.sqrt((one != 0).sum(axis=1)) * np.sqrt((other != 0).sum(axis=1))
        return cls(
            both.sum(axis=1),
            ordered.sum(axis=1),
            (ordered & (one == other)).sum(axis=1),
            (both - np.abs(one - other) / 2).sum(axis=1),
            np.divide(product, untied, out=np.full(len(product), np.nan), where=untied > 0),
        )


# -- twos of annotators --


@dataclass(frozen=True)
class Twos(Compared):
    """Every two rankings of one item by two people, where both ranked two answers or more."""

    items: np.ndarray  # [T] numbers, in the order of the ids
    annotators: np.ndarray  # [T, 2] see `ids`
    num_answers: np.ndarray  # [T] K of the item

    def where(self, wanted: np.ndarray) -> "Twos":
        return Twos(*(column[wanted] for column in vars(self).values()))


def all_twos(rankings: Rankings) -> Twos:
    numbers = np.unique(rankings.items, return_inverse=True)[1]
    parts = [_twos(rankings, numbers, *part) for part in _chunks(*two_by_two(numbers))]
    return Twos(*(np.concatenate(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))


def _twos(rankings: Rankings, numbers: np.ndarray, one: np.ndarray, other: np.ndarray) -> Twos:
    compared = Compared.of(rankings.ranks[one], rankings.ranks[other])
    people = np.stack([rankings.annotators[one], rankings.annotators[other]], axis=1)
    twos = Twos(*vars(compared).values(), numbers[one], people, rankings.num_answers[one])
    return twos.where(twos.ranked > 0)


def _chunks(*columns: np.ndarray):
    """The columns in parts of at most CHUNK rows; at least one part."""
    for start in range(0, max(len(columns[0]), 1), CHUNK):
        yield tuple(column[start : start + CHUNK] for column in columns)


def two_by_two(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(i, j) of every two equal numbers: [T], [T]."""
    order = np.argsort(numbers, kind="stable")
    number, found = numbers[order], [np.empty((2, 0), int)]
    most = int(np.bincount(numbers).max(initial=0))
    for apart in range(1, most):
        here = np.flatnonzero(number[apart:] == number[:-apart])
        found.append(np.stack([here, here + apart]))
    one, other = np.concatenate(found, axis=1)
    first = np.lexsort((other, one))
    return order[one[first]], order[other[first]]


def pair_figure(twos: Twos, figure) -> dict:
    """FIGURE of the pair agreement."""
    return {**figure(twos.alike, twos.ordered, twos.items), "num_pairs": int(twos.ordered.sum())}


def tau_figure(twos: Twos, figure) -> dict:
    known = ~np.isnan(twos.tau_b)
    taus = figure(twos.tau_b[known], np.ones(known.sum()), twos.items[known])
    return {**taus, "num_twos": int(known.sum()), "num_all_tied": int((~known).sum())}


def by_num_answers(twos: Twos, figure) -> list[dict]:
    groups = {int(size): twos.where(twos.num_answers == size) for size in np.unique(twos.num_answers)}
    return [{"num_answers": size, **pair_figure(them, figure)} for size, them in groups.items()]


# -- Krippendorff's alpha --


def coincidences(numbers: np.ndarray, values: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """How often two values meet in a unit, a column of an item: numbers of items [N], values [N, M] with NaN for none,
    domain [V], all values in order -> [I, V, V].

    A unit of m values counts each of its m (m - 1) ordered twos 1 / (m - 1); one with fewer than two values is left
    out. Krippendorff 2011, https://repository.upenn.edu/asc_papers/43.
    """
    row, column = np.nonzero(~np.isnan(values))
    counts = np.zeros((numbers.max(initial=-1) + 1, values.shape[1], len(domain)))
    np.add.at(counts, (numbers[row], column, np.searchsorted(domain, values[row, column])), 1)
    sizes = counts.sum(axis=2)
    weights = np.where(sizes > 1, 1 / np.maximum(sizes - 1, 1), 0)
    weighted = counts * weights[:, :, None]
    met = weighted.transpose(0, 2, 1) @ counts
    met[:, range(len(domain)), range(len(domain))] -= weighted.sum(axis=1)
    return met


def ordinal_alpha(met: np.ndarray) -> float | None:
    """Krippendorff's alpha of coincidences [V, V], values in order: 1 is full agreement, 0 what chance would give.

    The distance of two values is the number of values between them, the ends counted half, squared. None where all
    values are equal or there are none.
    """
    totals = met.sum(axis=1)
    ends = np.cumsum(totals) - totals / 2
    distance = (ends[:, None] - ends) ** 2
    expected = (np.outer(totals, totals) * distance).sum()
    return None if expected == 0 else float(1 - (totals.sum() - 1) * (met * distance).sum() / expected)


def place_values(ranks: np.ndarray) -> np.ndarray:
    """The places that ranks [N, M] stand for, tied ones in the middle of the places that they share; NaN stays."""
    better = (ranks[:, None, :] < ranks[:, :, None]).sum(axis=2)
    alike = (ranks[:, None, :] == ranks[:, :, None]).sum(axis=2)
    return np.where(np.isnan(ranks), np.nan, better + (alike + 1) / 2)


def alpha_figure(rankings: Rankings, num_bootstrap: int, seed: int) -> dict:
    """FIGURE of alpha, with the number of answers that two or more ranked; resamples without a value are left out."""
    _, numbers, times = np.unique(rankings.items, return_inverse=True, return_counts=True)
    shared = times[numbers] > 1
    numbers, places = np.unique(numbers[shared], return_inverse=True)[1], place_values(rankings.ranks[shared])
    num_items, known = int((times > 1).sum()), ~np.isnan(places)
    rankers = np.zeros((num_items, MAX_ANSWERS), int)
    np.add.at(rankers, numbers, known)
    if not (num_answers := int((rankers > 1).sum())):
        return {"value": None, "low": None, "high": None, "num_answers": 0, "undefined": "no answer has two ranks"}
    met = all_coincidences(numbers, places, np.unique(places[known]))
    value = ordinal_alpha(_square(met.sum(axis=0)))
    has_interval = value is not None and num_items > 1
    interval = alpha_interval(met, num_bootstrap, seed) if has_interval else {"low": None, "high": None}
    undefined = "all ranks are equal" if value is None else None
    return {"value": value, **interval, "num_answers": num_answers, "undefined": undefined}


def all_coincidences(numbers: np.ndarray, values: np.ndarray, domain: np.ndarray) -> csr_array:
    """`coincidences` of all items, a row each [I, V * V]; most of them are zero."""
    order = np.argsort(numbers, kind="stable")
    numbers, values = numbers[order], values[order]
    edges = np.searchsorted(numbers, range(0, numbers[-1] + 1 + CHUNK, CHUNK))
    parts = [coincidences(numbers[a:b] - numbers[a], values[a:b], domain) for a, b in pairwise(edges) if a < b]
    return vstack([csr_array(part.reshape(len(part), -1)) for part in parts]).tocsr()


def _square(met: np.ndarray) -> np.ndarray:
    return met.reshape(isqrt(len(met)), -1)


def alpha_interval(met: csr_array, num_bootstrap: int, seed: int) -> dict:
    """{"low", "high"}: the 95 % percentile interval of alpha over resampled items; met: [I, V * V]."""
    rng, num_items = np.random.default_rng(seed), met.shape[0]
    drawn = (np.bincount(rng.integers(num_items, size=num_items), minlength=num_items) for _ in range(num_bootstrap))
    alphas = [ordinal_alpha(_square(times @ met)) for times in drawn]
    return percentile_interval([alpha for alpha in alphas if alpha is not None])

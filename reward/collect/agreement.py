"""How far annotators agree on rankings of the same answers. Pure functions over Ranking.

Legend: A annotators of an item, K answers, P = K (K - 1) / 2 pairs of answers, V values that a rank can take.

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
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from reward.report import interval

NUM_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Ranking:
    """One annotator's ranks of an item's answers."""

    item: str
    annotator: str
    ranks: Mapping[str, int | None]  # response id -> rank: 1 is best, equal is a tie, None is not ranked


@dataclass(frozen=True)
class Two:
    """Two annotators' rankings of one item, of the answers that both ranked."""

    item: str
    annotators: tuple[str, str]
    num_answers: int  # K of the item
    orders: np.ndarray  # [2, P]: 1 where the pair's first answer is the better, -1 where the other, 0 where tied

    def alike(self) -> np.ndarray:
        """1 or 0 for each pair that both order."""
        one, other = self.orders[:, (self.orders != 0).all(axis=0)]
        return (one == other).astype(float)

    def alike_with_ties(self) -> np.ndarray:
        """1, 1/2 or 0 for each pair that both ranked."""
        return 1 - np.abs(self.orders[0] - self.orders[1]) / 2

    def tau_b(self) -> float | None:
        """Kendall's tau-b, -1 to 1; None where one of them ties all. Kendall 1945, doi.org/10.1093/biomet/33.3.239."""
        one, other = self.orders
        untied = np.sqrt(float(one @ one)) * np.sqrt(float(other @ other))
        return float(one @ other / untied) if untied else None


def agreement(rankings: Iterable[Ranking], num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """All measures: {"num_items", "num_annotators", "num_twos"} that agreement could be measured on, and

    pair_agreement            FIGURE, "num_pairs"
    pair_agreement_with_ties  FIGURE, "num_pairs"
    kendall_tau_b             FIGURE, "num_twos", "num_all_tied"
    krippendorff_alpha        FIGURE, "num_answers", "undefined": why it is, or None
    by_num_answers            [{"num_answers", FIGURE, "num_pairs"}]  pair agreement by the item's K
    """
    rankings = list(rankings)
    twos = all_twos(rankings)
    figure = partial(interval, num_bootstrap=num_bootstrap, seed=seed)
    return {
        "num_items": len({two.item for two in twos}),
        "num_annotators": len({annotator for two in twos for annotator in two.annotators}),
        "num_twos": len(twos),
        "pair_agreement": pair_figure(twos, Two.alike, figure),
        "pair_agreement_with_ties": pair_figure(twos, Two.alike_with_ties, figure),
        "kendall_tau_b": tau_figure(twos, figure),
        "krippendorff_alpha": alpha_figure(rankings, num_bootstrap, seed),
        "by_num_answers": by_num_answers(twos, figure),
    }


# -- twos of annotators --


def all_twos(rankings: Iterable[Ranking]) -> list[Two]:
    """Every two rankings of one item by two people, where both ranked two answers or more."""
    twos = (two_of(one, other) for them in by_item(rankings).values() for one, other in combinations(them, 2))
    return [two for two in twos if two.orders.size]


def by_item(rankings: Iterable[Ranking]) -> dict[str, list[Ranking]]:
    items = {}
    for ranking in rankings:
        items.setdefault(ranking.item, []).append(ranking)
    return items


def two_of(one: Ranking, other: Ranking) -> Two:
    answers = [a for a in sorted(one.ranks) if one.ranks[a] is not None and other.ranks.get(a) is not None]
    ranks = np.array([[ranking.ranks[a] for a in answers] for ranking in (one, other)], dtype=float)  # [2, K]
    first, second = np.triu_indices(len(answers), k=1)
    orders = np.sign(ranks[:, second] - ranks[:, first])
    return Two(one.item, (one.annotator, other.annotator), len(one.ranks), orders)


def pair_figure(twos: list[Two], judge, figure) -> dict:
    """FIGURE of the mean of judge(two) over all pairs of all twos."""
    judged = [judge(two) for two in twos]
    values = np.concatenate([np.empty(0), *judged])
    items = [two.item for two, pairs in zip(twos, judged, strict=True) for _ in pairs]
    return {**figure(values, items), "num_pairs": len(values)}


def tau_figure(twos: list[Two], figure) -> dict:
    known = [(tau, two.item) for two in twos if (tau := two.tau_b()) is not None]
    taus, items = zip(*known, strict=True) if known else ((), ())
    return {**figure(taus, items), "num_twos": len(known), "num_all_tied": len(twos) - len(known)}


def by_num_answers(twos: list[Two], figure) -> list[dict]:
    sizes = sorted({two.num_answers for two in twos})
    groups = {size: [two for two in twos if two.num_answers == size] for size in sizes}
    return [{"num_answers": size, **pair_figure(them, Two.alike, figure)} for size, them in groups.items()]


# -- Krippendorff's alpha --


def coincidences(values: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """How often two values meet in a unit: [A, units] with NaN for none -> [V, V].

    A unit of m values counts each of its m (m - 1) ordered twos 1 / (m - 1); one with fewer than two values is left
    out. Krippendorff 2011, https://repository.upenn.edu/asc_papers/43.
    """
    counts = (values.T[:, :, None] == domain).sum(axis=1).astype(float)  # [units, V]
    counts = counts[counts.sum(axis=1) > 1]
    weights = 1 / (counts.sum(axis=1) - 1)
    return (counts.T * weights) @ counts - np.diag(weights @ counts)


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


def place_values(rankings: list[Ranking]) -> np.ndarray:
    """The ranks of one item's answers, tied ones in the middle of their places: [A, K], NaN where not ranked."""
    answers = sorted(rankings[0].ranks)
    ranks = np.array([[one.ranks[a] for a in answers] for one in rankings], dtype=float)
    return rankdata(ranks, method="average", axis=1, nan_policy="omit")


def alpha_figure(rankings: Iterable[Ranking], num_bootstrap: int, seed: int) -> dict:
    """FIGURE of alpha, with the number of answers that two or more ranked; resamples without a value are left out."""
    values = [place_values(them) for them in by_item(rankings).values() if len(them) > 1]
    num_answers = sum(int(((~np.isnan(item)).sum(axis=0) > 1).sum()) for item in values)
    if not num_answers:
        return {"value": None, "low": None, "high": None, "num_answers": 0, "undefined": "no answer has two ranks"}
    domain = np.unique(np.concatenate([item[~np.isnan(item)] for item in values]))
    met = np.stack([coincidences(item, domain) for item in values])  # [items, V, V]
    value = ordinal_alpha(met.sum(axis=0))
    low, high = (None, None) if value is None or len(met) == 1 else alpha_interval(met, num_bootstrap, seed)
    undefined = "all ranks are equal" if value is None else None
    return {"value": value, "low": low, "high": high, "num_answers": num_answers, "undefined": undefined}


def alpha_interval(met: np.ndarray, num_bootstrap: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of alpha over resampled items."""
    rng, num_items = np.random.default_rng(seed), len(met)
    drawn = (np.bincount(rng.integers(num_items, size=num_items), minlength=num_items) for _ in range(num_bootstrap))
    alphas = [ordinal_alpha(np.tensordot(times, met, axes=1)) for times in drawn]
    low, high = np.quantile([alpha for alpha in alphas if alpha is not None], [0.025, 0.975])
    return float(low), float(high)

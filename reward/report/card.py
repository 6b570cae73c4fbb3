"""The report card of a reward model: how well its scores agree with people's rankings. Pure functions over lists.

A pair is two answers of which an annotator ranked one above the other; z is the better one's score less the worse
one's, and |z| < 1e-6 is a tie of the model, half right. Pairs that the annotator left tied are counted, not judged.
Annotations of one prompt are not independent: intervals are 95 % bootstrap intervals over whole prompts.

The card is a dict for JSON; what is undefined is None, never NaN. FIGURE: {"value", "low", "high"}.

    num_rankings, num_prompts, num_pairs, num_tied_pairs
    pair_accuracy            FIGURE  over all pairs
    pair_accuracy_by_prompt  FIGURE  mean over prompts of the accuracy within one
    by_rank_gap              [{"gap", "value", "num_pairs"}]  gap 1: neighbours in the ranking, whatever its numbers
    by_length                {"better_longer", "better_shorter", "same_length"}: {"value", "num_pairs"}
    baselines                pair accuracy of preferring always the longer, always the shorter, or any answer:
                             {"length": FIGURE, "shorter": FIGURE, "random": 0.5}
    gold_pair_accuracy     ? FIGURE  of the rule that simulated annotators follow: the ceiling that their noise leaves
    human_agreement          FIGURE, "num_pairs"  see `human_agreement`
    top1                     FIGURE, "random", "num_rankings"  see `top1`
    kendall_tau_b            FIGURE, "num_prompts", "num_all_tied"  mean over prompts, see `kendall`
    score_length_spearman    FIGURE, "num_prompts"  mean over prompts
    ece, brier, reliability  see `calibration`
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from scipy.special import expit
from scipy.stats import kendalltau, spearmanr

from reward.report.compare import TIE
from reward.report.intervals import mean_interval
from rlhf.errors import NumericsError
from rlhf.tables import table

NUM_BINS = 15  # of equal mass, for the calibration error
PAIRS_PER_BIN = 10  # at least, with fewer bins: the share of votes of one pair is 0 or 1 however good the model is


@dataclass(frozen=True)
class Judged:
    """One annotator's ranking of K answers, with the model's scores."""

    scores: Sequence[float]
    ranks: Sequence[int | None]  # 1 = best, equal = tie, None = not ranked
    lengths: Sequence[int]  # tokens
    responses: Sequence[str]  # texts or ids: they tell which answers two annotators both ranked
    key: str  # of the prompt
    annotator: str | None = None  # None: not known

    def __post_init__(self):
        sizes = [len(self.scores), len(self.ranks), len(self.lengths), len(self.responses)]
        assert len(set(sizes)) == 1, f"scores, ranks, lengths and responses must all have K entries, not {sizes}"
        for score in self.scores:
            if not np.isfinite(score):
                raise NumericsError(f"the reward model scores an answer to prompt {self.key} with {score}")

    def places(self):
        """The ranked answers [k] and their places [k]: 1, 2, ... without gaps, tied answers in one place."""
        answers = np.array([i for i, rank in enumerate(self.ranks) if rank is not None], dtype=int)
        return answers, np.unique([self.ranks[i] for i in answers], return_inverse=True)[1] + 1

    def has_order(self):
        """Whether any answer is ranked above another."""
        return self.places()[1].max(initial=0) > 1


@dataclass(frozen=True)
class Pairs:
    """All pairs of all annotators, arrays [P]. Differences are of the better answer less the worse one."""

    prompt: np.ndarray  # number of the prompt
    gap: np.ndarray  # places
    z: np.ndarray  # score
    length: np.ndarray  # tokens
    gold: np.ndarray  # gold utility


def report_card(
    judged: Iterable[Judged], gold: Sequence[Sequence[float]] | None = None, num_bootstrap: int = 2000, seed: int = 0
) -> dict:
    """The card described above, of a list of Judged. gold: for each of them the K utilities of its answers."""
    judged = list(judged)
    prompts = np.unique([one.key for one in judged], return_inverse=True)[1]  # number of each ranking's prompt
    figure = partial(interval, num_bootstrap=num_bootstrap, seed=seed)
    pairs, votes = ordered_pairs(judged, prompts, gold), votes_by_pair(judged)
    return {
        "num_rankings": len(judged),
        "num_prompts": len(set(prompts)),
        "num_tied_pairs": sum(num_tied_pairs(one) for one in judged),
        **pair_figures(pairs, figure),
        "gold_pair_accuracy": None if gold is None else figure(credit(pairs.gold), pairs.prompt),
        "human_agreement": human_agreement(votes, figure),
        "top1": top1_figure(judged, prompts, figure),
        "kendall_tau_b": {
            **prompt_mean(map(kendall, judged), prompts, figure),
            "num_all_tied": sum(not one.has_order() for one in judged),
        },
        "score_length_spearman": prompt_mean(map(length_correlation, judged), prompts, figure),
        **calibration(votes),
    }


# -- intervals and means --


def interval(values, prompts, num_bootstrap, seed):
    """FIGURE of the mean of values [n], of which prompts [n] says the prompt; no interval for a single prompt."""
    if len(values) == 0:
        return {"value": None, "low": None, "high": None}
    if len(set(prompts)) == 1:
        return {"value": float(np.mean(values)), "low": None, "high": None}
    return mean_interval(values, num_bootstrap, seed, prompts)


def prompt_mean(values, prompts, figure):
    """FIGURE of the mean over prompts, of means within one; a value that is None is left out."""
    known = [(value, prompt) for value, prompt in zip(values, prompts, strict=True) if value is not None]
    values, prompts = np.array(known).reshape(-1, 2).T
    _, index = np.unique(prompts, return_inverse=True)
    means = np.bincount(index, weights=values) / np.bincount(index)
    return {**figure(means, range(len(means))), "num_prompts": len(means)}


def share(right):
    return {"value": float(right.mean()) if len(right) else None, "num_pairs": len(right)}


# -- pairs --


def credit(difference: np.ndarray) -> np.ndarray:
    """1 where the better answer is ahead, 0 where it is behind, 1/2 within a tie: [P] -> [P]."""
    return np.where(np.abs(difference) < TIE, 0.5, difference > 0)


def ordered_pairs(judged: list[Judged], prompts, gold=None) -> Pairs:
    """The Pairs of a list of Judged; prompts: the number of each one's prompt."""
    rows = [np.empty((5, 0))]
    for n, one in enumerate(judged):
        answers, places = one.places()
        better, worse = np.nonzero(places[:, None] < places)
        columns = [places, *(np.asarray(x, dtype=float)[answers] for x in (one.scores, one.lengths))]
        columns += [np.zeros(len(places)) if gold is None else np.asarray(gold[n], dtype=float)[answers]]
        gap, z, length, utility = (column[better] - column[worse] for column in columns)
        rows.append([np.full(len(better), prompts[n]), -gap, z, length, utility])
    return Pairs(*np.concatenate(rows, axis=1))


def num_tied_pairs(one: Judged) -> int:
    counts = np.bincount(one.places()[1])
    return int((counts * (counts - 1)).sum()) // 2


def pair_figures(pairs: Pairs, figure) -> dict:
    """The parts of the card that are accuracies over ordered pairs."""
    right, longer = credit(pairs.z), credit(pairs.length)
    by_prompt = prompt_mean(right, pairs.prompt, figure)
    return {
        "num_pairs": len(right),
        "pair_accuracy": figure(right, pairs.prompt),
        "pair_accuracy_by_prompt": {name: by_prompt[name] for name in ("value", "low", "high")},
        "by_rank_gap": [{"gap": int(gap), **share(right[pairs.gap == gap])} for gap in np.unique(pairs.gap)],
        "by_length": {
            "better_longer": share(right[pairs.length > 0]),
            "better_shorter": share(right[pairs.length < 0]),
            "same_length": share(right[pairs.length == 0]),
        },
        "baselines": {
            "length": figure(longer, pairs.prompt),
            "shorter": figure(1 - longer, pairs.prompt),
            "random": 0.5,
        },
    }


# -- rankings --


def top1(one: Judged) -> tuple[float, float] | None:
    """(credit, what chance would get): how likely the answer that the model puts first is one of the annotator's best.

    Where the model ties several for first, one of them is drawn. None where the annotator ranked none above another,
    as any answer would do.
    """
    if not one.has_order():
        return None
    answers, places = one.places()
    scores = np.asarray(one.scores, dtype=float)[answers]
    first = scores > scores.max() - TIE
    return float((places[first] == 1).mean()), float((places == 1).mean())


def top1_figure(judged, prompts, figure):
    found = [(*credits, prompt) for credits, prompt in zip(map(top1, judged), prompts, strict=True) if credits]
    credits, chances, prompts = np.array(found).reshape(-1, 3).T
    chance = float(chances.mean()) if found else None
    return {**figure(credits, prompts), "random": chance, "num_rankings": len(found)}


def kendall(one: Judged) -> float | None:
    """Kendall's tau-b of scores and places, -1 to 1; 0 for a model that ties all, None for an annotator who does."""
    if not one.has_order():
        return None
    answers, places = one.places()
    scores = np.asarray(one.scores, dtype=float)[answers]
    return 0.0 if np.ptp(scores) == 0 else float(kendalltau(scores, -places).statistic)


def length_correlation(one: Judged) -> float | None:
    """Spearman's rho of score and length over all answers of a prompt; None where either is the same for all."""
    constant = len(one.scores) < 2 or np.ptp(one.scores) == 0 or np.ptp(one.lengths) == 0
    return None if constant else float(spearmanr(one.scores, one.lengths).statistic)


# -- votes of several annotators --


def votes_by_pair(judged: Iterable[Judged]) -> dict:
    """{(key, answer, other answer): (z, {annotator: vote})}; vote 1: for the first, 0: for the other, 1/2: a tie.

    An annotator who ranked the same two twice has the last vote; who is not known has a vote under a number each time.
    Two answers of the same text are no pair.
    """
    votes = {}
    for n, one in enumerate(judged):
        annotator = n if one.annotator is None else str(one.annotator)
        for i, j in combinations(one.places()[0], 2):
            i, j = sorted((i, j), key=one.responses.__getitem__)  # the same way round for all annotators
            if one.responses[i] != one.responses[j]:
                pair = (one.key, one.responses[i], one.responses[j])
                _, by_annotator = votes.setdefault(pair, (one.scores[i] - one.scores[j], {}))
                by_annotator[annotator] = 0.5 if one.ranks[i] == one.ranks[j] else float(one.ranks[i] < one.ranks[j])
    return votes


def human_agreement(votes: dict, figure) -> dict:
    """FIGURE: how often two annotators order the same two answers alike, over all twos that both order the pair.

    Two rankings of which it is not known whose they are may be one person's: they say nothing of agreement.
    The figure to compare the pair accuracy with: InstructGPT's labellers agree in 72.6 % (Ouyang et al. 2022, 3.4).
    """
    agreed, prompts = [], []
    for (key, _, _), (_, by_annotator) in votes.items():
        known = [vote for annotator, vote in by_annotator.items() if isinstance(annotator, str)]
        two = [vote == other for vote, other in combinations(known, 2) if 0.5 not in (vote, other)]
        agreed += two
        prompts += [key] * len(two)
    return {**figure(np.array(agreed, dtype=float), prompts), "num_pairs": len(agreed)}


def calibration(votes: dict) -> dict:
    """How far sigma(z) is from the share of votes: {"ece", "brier", "reliability"}.

    Each two answers count once, ties as half votes; `predicted` is the probability of the answer that the model puts
    ahead, so at least 1/2, and `observed` the share of votes for it. reliability: [{"predicted", "observed", "count"}]
    of 15 bins with as many pairs each, 10 or more; ece: the mean distance of the two over the bins. Guo et al. 2017,
    https://arxiv.org/abs/1706.04599; bins of equal mass: Nixon et al. 2019, https://arxiv.org/abs/1904.01685.
    """
    if not votes:
        return {"ece": None, "brier": None, "reliability": []}
    z = np.array([z for z, _ in votes.values()])
    first = np.array([np.mean(list(by_annotator.values())) for _, by_annotator in votes.values()])  # share of votes
    predicted = expit(np.abs(z))
    observed = np.where(np.abs(z) < TIE, 0.5, np.where(z > 0, first, 1 - first))
    num_bins = max(1, min(NUM_BINS, len(z) // PAIRS_PER_BIN))
    bins = np.array_split(np.argsort(predicted, kind="stable"), num_bins)
    gaps = [abs(predicted[b].mean() - observed[b].mean()) for b in bins]
    return {
        "ece": float(np.average(gaps, weights=[len(b) for b in bins])),
        "brier": float(np.mean((expit(z) - first) ** 2)),
        "reliability": [
            {"predicted": float(predicted[b].mean()), "observed": float(observed[b].mean()), "count": len(b)}
            for b in bins
        ],
    }


# -- terminal --


def lines(card: dict) -> list[str]:
    """The card as a short table."""
    title = "{num_rankings} rankings of {num_prompts} prompts; pairs in order: {num_pairs}, tied: {num_tied_pairs}"
    rows = [*accuracy_rows(card), *comparison_rows(card), *other_rows(card)]
    return [title.format(**card), *(line.rstrip() for line in table([("", "value", "95 % interval", "of"), *rows]))]


def accuracy_rows(card):
    gaps = [
        percent_row(f"  {gap['gap']} apart in rank", gap, f"{gap['num_pairs']} pairs") for gap in card["by_rank_gap"]
    ]
    lengths = [(name.replace("_", " "), share) for name, share in card["by_length"].items()]
    return [
        percent_row("pair accuracy", card["pair_accuracy"], f"{card['num_pairs']} pairs"),
        percent_row("  mean over prompts", card["pair_accuracy_by_prompt"]),
        *gaps,
        *(percent_row(f"  {name}", share, f"{share['num_pairs']} pairs") for name, share in lengths),
    ]


def comparison_rows(card):
    agreement, gold = card["human_agreement"], card["gold_pair_accuracy"]
    return [
        percent_row("to compare: longer answer wins", card["baselines"]["length"]),
        percent_row("  shorter answer wins", card["baselines"]["shorter"]),
        percent_row("  any answer wins", {"value": card["baselines"]["random"]}),
        percent_row("  two annotators agree", agreement, f"{agreement['num_pairs']} comparisons"),
        *([percent_row("  the annotators' gold rule", gold)] if gold else []),
    ]


def other_rows(card):
    top1, tau, rho = card["top1"], card["kendall_tau_b"], card["score_length_spearman"]
    return [
        percent_row("best answer found", top1, f"{top1['num_rankings']} rankings"),
        percent_row("  by chance", {"value": top1["random"]}),
        number_row("Kendall tau-b", tau, f"{tau['num_prompts']} prompts"),
        number_row("Spearman of score and length", rho, f"{rho['num_prompts']} prompts"),
        number_row("calibration error", {"value": card["ece"]}),
        number_row("Brier score", {"value": card["brier"]}),
    ]


def percent_row(name, figure, of=""):
    return _row(name, figure, of, lambda share: f"{100 * share:.1f} %")


def number_row(name, figure, of=""):
    return _row(name, figure, of, lambda number: f"{number:.3f}")


def _row(name, figure, of, text):
    value, low, high = (figure.get(part) for part in ("value", "low", "high"))
    return name, None if value is None else text(value), "" if low is None else f"{text(low)} to {text(high)}", of

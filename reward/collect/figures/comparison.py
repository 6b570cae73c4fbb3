"""A blind comparison of policies: how often people rank one policy's answers above another's.

People rank the answers of an item without seeing whose they are; the item says which policies gave each. An answer that
several policies gave is a tie between them, and so is an item on which all gave the same one, which nobody ranks.
Rankings of one prompt are not independent: intervals are 95 % bootstrap intervals over whole prompts.

Legend: I items, M policies. FIGURE: {"value", "low", "high"}, None where it is not known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from scipy.special import expit
from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from reward.collect.figures.agreement import NUM_BOOTSTRAP
from reward.collect.ranking.annotations import is_current
from reward.collect.refusals import NotFound
from reward.collect.store.tables import Annotation, Annotator, Item
from reward.report.card import interval

PRIOR = 1.0  # virtual ties between each two policies
MAX_NEWTON_STEPS, LONGEST_STEP, CONVERGED = 200, 1.0, 1e-10


@dataclass(frozen=True)
class Judgement:
    """One ranking of an item, with the policies that gave each answer."""

    item: str
    prompt: str
    ranks: Mapping[str, int | None]  # response id -> rank: 1 is best, equal is a tie, None is not ranked
    policies: Mapping[str, frozenset[str]]  # response id -> policies

    def wins(self, policy: str, other: str) -> float | None:
        """Share of (policy's answer, other's answer) in which the first is ranked above the second, a tie half.

        None where there is nothing to compare. An answer that both gave is a tie with itself.
        """
        ours, theirs = ([self.ranks[r] for r in self._ranked_answers(name)] for name in (policy, other))
        credits = [0.5 if one == another else float(one < another) for one, another in product(ours, theirs)]
        return sum(credits) / len(credits) if credits else None

    def _ranked_answers(self, policy: str) -> list[str]:
        return [r for r, rank in self.ranks.items() if rank is not None and policy in self.policies[r]]


# -- from the database --


def comparison_names(session: Session) -> list[str]:
    found = session.scalars(select(Item.comparison).where(Item.comparison.is_not(None)).distinct())
    return sorted(found)


def comparison_report(session: Session, name: str, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """`compare` for the comparison of this name, and how much of it is there. Raises NotFound where there is none.

    num_items; num_identical: of these, all policies gave the same answer, ties; num_waiting: nobody has ranked them;
    num_not_rankable, num_paused: rankings that are left out.
    """
    items = list(session.scalars(select(Item).where(Item.comparison == name, Item.state != "cancelled")))
    if not items:
        there = ", ".join(comparison_names(session)) or "none"
        raise NotFound(f"comparison {name!r} has no items; comparisons here: {there}")
    ranked = rankings_of(session, name)
    judgements = judgements_of(items, ranked)
    return {"name": name, **compare(judgements, num_bootstrap, seed), **counts(items, ranked)}


def rankings_of(session: Session, name: str) -> list[Row]:
    """(item_id, ranks, not_rankable, status of who made it) of each current ranking, the oldest first."""
    found = select(Annotation.item_id, Annotation.ranks, Annotation.not_rankable, Annotator.status)
    found = found.join(Item, Annotation.item_id == Item.id).join(Annotator, Annotation.annotator_id == Annotator.id)
    found = found.where(is_current(), Item.comparison == name, Item.state != "cancelled")
    return list(session.execute(found.order_by(Annotation.submitted_at, Annotation.id)))


def policies_of(item: Item) -> dict[str, frozenset[str]]:
    """Response id -> the policies that gave this answer to the item."""
    return {one: frozenset(policies) for one, policies in item.meta["policies"].items()}


def judgements_of(items: list[Item], ranked: list[Row]) -> list[Judgement]:
    """Of the rankings that count, and of the items that need none."""
    by_id = {item.id: item for item in items}
    judged = [(by_id[one.item_id], one.ranks) for one in without_paused(ranked) if not one.not_rankable]
    judged += [(item, dict.fromkeys(item.response_ids, 1)) for item in items if item.state == "identical"]
    return [Judgement(item.id, item.prompt_id, ranks, policies_of(item)) for item, ranks in judged]


def without_paused(ranked: list[Row]) -> list[Row]:
    return [one for one in ranked if one.status != "paused"]


def counts(items: list[Item], ranked: list[Row]) -> dict:
    identical, active = {item.id for item in items if item.state == "identical"}, without_paused(ranked)
    return {
        "num_items": len(items),
        "num_identical": len(identical),
        "num_waiting": len({item.id for item in items} - identical - {one.item_id for one in ranked}),
        "num_paused": len(ranked) - len(active),
        "num_not_rankable": sum(one.not_rankable is not None for one in active),
    }


# -- win rates --


def compare(judgements: Iterable[Judgement], num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> dict:
    """{"policies", "pairs", "strengths"}, the strongest first.

    pairs      [{"policy", "other", FIGURE, "wins", "ties", "losses", "num_ranked", "num_items", "num_prompts"}]
               the share of items in which `policy` is ranked above `other`, a tie half; an item's several rankings
               count as their mean. The counts are of rankings, num_ranked those that somebody made: all but
               the ties of items with one answer. `policy` is the one of the two that wins more often
    strengths  [{"policy", FIGURE}]  see `bradley_terry`
    """
    judgements = list(judgements)
    names = sorted({name for one in judgements for r in one.ranks for name in one.policies[r]})
    prompts, wins = wins_by_item(judgements, names)
    strengths = strength_figures(names, prompts, wins, num_bootstrap, seed)
    order = [row["policy"] for row in strengths]
    pairs = [pair_report(judgements, prompts, wins, names, two, num_bootstrap, seed) for two in combinations(order, 2)]
    return {"policies": order, "pairs": pairs, "strengths": strengths}


def wins_by_item(judgements: list[Judgement], names: list[str]) -> tuple[list[str], np.ndarray]:
    """(prompt of each item [I], share of its rankings in which the row beats the column [I, M, M]), NaN for unknown."""
    by_item = {}
    for one in judgements:
        by_item.setdefault((one.prompt, one.item), []).append(one)
    wins = np.full((len(by_item), len(names), len(names)), np.nan)
    for n, them in enumerate(by_item.values()):
        for (i, policy), (j, other) in combinations(enumerate(names), 2):
            shares = [share for one in them if (share := one.wins(policy, other)) is not None]
            if shares:
                wins[n, i, j] = sum(shares) / len(shares)
                wins[n, j, i] = 1 - wins[n, i, j]
    return [prompt for prompt, _ in by_item], wins


def pair_report(judgements, prompts, wins, names, two, num_bootstrap, seed) -> dict:
    share = wins[:, names.index(two[0]), names.index(two[1])]
    known = ~np.isnan(share)
    if known.any() and share[known].mean() < 0.5:
        two, share = two[::-1], 1 - share
    prompts = [prompt for prompt, is_known in zip(prompts, known, strict=True) if is_known]
    shares = [one.wins(*two) for one in judgements]
    return {
        "policy": two[0],
        "other": two[1],
        **interval(share[known], prompts, num_bootstrap, seed),
        "wins": sum(share is not None and share > 0.5 for share in shares),
        "ties": shares.count(0.5),
        "losses": sum(share is not None and share < 0.5 for share in shares),
        "num_ranked": sum(s is not None and len(one.ranks) > 1 for one, s in zip(judgements, shares, strict=True)),
        "num_items": len(prompts),
        "num_prompts": len(set(prompts)),
    }


# -- strengths --


def bradley_terry(wins: np.ndarray, prior: float = PRIOR) -> np.ndarray:
    """Log strengths [..., M] with mean 0 from wins [..., M, M] of row over column, ties being half wins.

    They maximise sum_ij wins_ij log sigma(s_i - s_j): a policy that is stronger by d wins with probability sigma(d).
    The prior adds this many ties between each two policies. With 1 tie it is half a win each, little beside hundreds of
    comparisons, and keeps the strengths finite where one never loses or two were never compared, even indirectly.
    Bradley and Terry 1952, https://doi.org/10.2307/2334029; by Newton's method: the logarithm is concave.
    """
    num = wins.shape[-1]
    wins = (wins + prior / 2) * (1 - np.eye(num))
    total, strengths = wins + np.swapaxes(wins, -1, -2), np.zeros(wins.shape[:-1])
    for _ in range(MAX_NEWTON_STEPS):
        chance = expit(strengths[..., :, None] - strengths[..., None, :])
        gradient = (wins - total * chance).sum(axis=-1)
        curvature = total * chance * (1 - chance)
        laplacian = np.eye(num) * curvature.sum(axis=-1)[..., None] - curvature
        step = np.linalg.solve(laplacian + 1 / num, gradient[..., None])[..., 0]  # 1 / num: the mean stays 0
        longest = np.abs(step).max(axis=-1, keepdims=True)
        strengths += step * np.minimum(1, LONGEST_STEP / np.maximum(longest, CONVERGED))
        if longest.max() < CONVERGED:
            break
    return strengths - strengths.mean(axis=-1, keepdims=True)


def strength_figures(names, prompts, wins, num_bootstrap, seed) -> list[dict]:
    """[{"policy", "value", "low", "high"}], the strongest first; no interval for a single prompt."""
    if not names:
        return []
    prompt, known = np.unique(prompts, return_inverse=True)[1], np.nan_to_num(wins)
    by_prompt = np.zeros((prompt.max() + 1, *wins.shape[1:]))
    np.add.at(by_prompt, prompt, known)
    values = bradley_terry(by_prompt.sum(axis=0))
    low, high = strength_intervals(by_prompt, num_bootstrap, seed)
    figures = [
        {"policy": name, "value": float(value), "low": low and low[i], "high": high and high[i]}
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    return sorted(figures, key=lambda figure: -figure["value"])


def strength_intervals(by_prompt: np.ndarray, num_bootstrap: int, seed: int) -> Sequence[list[float] | None]:
    """(low, high), each [M], of the strengths over resampled prompts."""
    rng, num = np.random.default_rng(seed), len(by_prompt)
    if num < 2:
        return None, None
    drawn = (np.bincount(rng.integers(num, size=num), minlength=num) for _ in range(num_bootstrap))
    wins = [np.tensordot(times, by_prompt, axes=1) for times in drawn]
    return np.quantile(bradley_terry(np.array(wins)), [0.025, 0.975], axis=0).tolist()


# -- words --


def sentence(pair: dict) -> str:
    """E.g. "ppo beats sft in 64 % (95 % 58-70) of 200 prompts: 120 wins, 16 ties, 64 losses"."""
    if not pair["num_ranked"]:
        return f"nobody has ranked {pair['policy']} against {pair['other']} yet"
    rate, of = f"{100 * pair['value']:.0f} %", f"of {pair['num_prompts']} prompt{'s' * (pair['num_prompts'] != 1)}"
    rate += "" if pair["low"] is None else f" (95 % {100 * pair['low']:.0f}-{100 * pair['high']:.0f})"
    verb = "beats" if pair["value"] > 0.5 else "ties with"
    told = f"{pair['policy']} {verb} {pair['other']} in {rate} {of}: {outcomes(pair)}"
    return f"{told}; the interval includes 50 %" if includes_half(pair) else told


def outcomes(pair: dict) -> str:
    """E.g. "5 wins, 1 tie, 0 losses"."""
    names = {"wins": ("win", "wins"), "ties": ("tie", "ties"), "losses": ("loss", "losses")}
    return ", ".join(f"{pair[key]} {one if pair[key] == 1 else several}" for key, (one, several) in names.items())


def includes_half(pair: dict) -> bool:
    """Whether there is an interval of the win rate, and 50 % in it."""
    return pair["low"] is not None and pair["low"] <= 0.5


def caveats(report: dict) -> list[str]:
    """What to know before reading the figures, in sentences."""
    told = []
    if report["num_waiting"]:
        told += [f"{report['num_waiting']} of {report['num_items']} items are still to be ranked"]
    if report["num_identical"]:
        early = ", all counted already, which draws the rates to 50 %" if report["num_waiting"] else ""
        told += [f"on {report['num_identical']} items all policies gave the same answer: ties{early}"]
    if report["num_not_rankable"]:
        told += [f"{report['num_not_rankable']} rankings say that no answer could be ranked; they are left out"]
    if report["num_paused"]:
        told += [f"{report['num_paused']} rankings of paused annotators are left out"]
    return told

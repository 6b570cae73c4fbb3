"""Two policies on the same held-out prompts: the figures of report.json. Pure functions: no model, no files.

Legend: n responses in all (num_samples per prompt), KL in nats per response, lengths in tokens.

report.json. `compare_policies` makes the first block, stages.evaluate adds the second, page.render draws both.
What is marked ? may be null or left out; the page then leaves out what it would have shown.

    win_rate        {"by", "value", "low", "high", "wins", "ties", "losses"}  PPO against SFT, a tie is half a win;
                    by: "gold rule MODULE:FUNCTION" where there is one, else what the scores are, see judges.py;
                    low, high: 95 % interval
    policies        {"sft": FIGURES, "ppo": FIGURES}, see `summarise_policy`; ppo holds its own win_rate
    num_prompts     held-out prompts
    num_responses   n, of each policy
    num_demonstrations ? test examples behind the perplexity
    scores          {"sft": [n], "ppo": [n]}  scores by the reward that PPO optimised
    gold          ? {"sft": [n], "ppo": [n]}  marks of the gold rule
    examples        [{"prompt": text or messages, "sft": text, "ppo": text, "scores": {"sft", "ppo"},
                    "gold": {"sft", "ppo"} or null, "winner": "sft" | "ppo" | "tie", "picked": why it is shown}]

    simulated       true where annotators and gold rule are made up
    seed, kl_budget
    rewards         the terms that PPO optimised: [{"source", "weight"}]
    reward_cards  ? {name of a reward model: its report card (reward/report/card.py)}
    notes         ? [what the report lacks, and why]
    data_warnings ? [what the data reports of the stages call for]
    warnings        [what the figures call for], see reward/report/cautions.py
    curves        ? {metric name: {"step": [...], "value": [...]}} of the PPO stage's metrics.jsonl, see `read_curves`
    frontier      ? [[kl, score, step], ...] of the evaluations during PPO, see `read_frontier`
    exported_step ? PPO step of the exported checkpoint; 0 is the SFT policy itself
    run           ? folder of the run
    lineage       ? [{"stage", "path", "sha256", "created", "base", "data": [{"path", "records", "sha256"}]}]
                    one an artifact; base: what its weights started from
    configs       ? [{"stage", "path", "changed": {key: {"value", "default"}}, "values": {key: value}}]  what each stage
                    read of its own config, as its manifest says; changed: where that is not the shipped config's
    versions      ? {package: version}
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reward.report.intervals import WILSON_BELOW, mean_interval, wilson_interval
from rlhf.errors import NumericsError

TIE = 1e-6  # scores closer than this are a tie: the same text scores a little differently in another batch


@dataclass(frozen=True)
class Answers:
    """One policy's n responses to the held-out prompts, and what was measured on each."""

    texts: Sequence[str]
    groups: Sequence[str]  # key of the prompt: responses to one prompt are not independent
    scores: Sequence[float]  # of the reward that PPO optimised
    kl: Sequence[float]  # from the SFT policy, nats
    lengths: Sequence[int]  # tokens
    finished: Sequence[bool]  # ended with EOS before the token limit
    gold: Sequence[float] | None = None  # of the gold rule

    def __post_init__(self):
        for name in ("groups", "scores", "kl", "lengths", "finished", "gold"):
            values, n = getattr(self, name), len(self.texts)
            assert values is None or len(values) == n, f"{name}: {len(values)} values for {n} texts"
        for name in ("scores", "kl", "gold"):
            _refuse_non_finite(name, getattr(self, name))


def _refuse_non_finite(name, values):
    for i, value in enumerate(values if values is not None else ()):
        if not np.isfinite(value):
            raise NumericsError(f"{name} of held-out response {i} is {value}; only finite numbers can be compared")


def outcomes(challenger, baseline):
    """1 where the challenger's score is higher, 0 where it is lower, 0.5 for a tie. [n], [n] -> [n]"""
    gain = np.asarray(challenger, dtype=float) - np.asarray(baseline, dtype=float)
    return np.where(np.abs(gain) <= TIE, 0.5, (gain > 0).astype(float))


def win_rate(challenger, baseline, num_bootstrap, seed, groups=None):
    """Share of the n comparisons that the challenger wins, a tie counting half, with interval and counts.

    challenger, baseline: scores [n] of two answers to the same prompt; groups [n]: the prompt's key. The interval is
    the bootstrap's or, of few prompts, Wilson's: three wins of three say little, and resampled they are always three.
    """
    assert len(challenger) == len(baseline), f"{len(challenger)} scores against {len(baseline)}"
    won = outcomes(challenger, baseline)
    counts = {name: int((won == value).sum()) for name, value in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))}
    rate, num_prompts = mean_interval(won, num_bootstrap, seed, groups), len(set(groups if groups else range(len(won))))
    return rate | (wilson_interval(rate["value"], num_prompts) if num_prompts < WILSON_BELOW else {}) | counts


def distinct_n(responses, n):
    """Distinct n-grams over all n-grams of the responses together, 0 to 1; low means repetitive. None without any.

    responses: texts (n-grams of words) or lists of token ids. Falls with the amount of text: compare like with like.
    Li et al. 2016, https://arxiv.org/abs/1510.03055.
    """
    sequences = [response.split() if isinstance(response, str) else list(response) for response in responses]
    grams = [tuple(words[i : i + n]) for words in sequences for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def summarise_policy(answers, perplexity, num_bootstrap, seed, baseline=None, judges=("reward model", None)):
    """One policy's figures, as numbers; "intervals" holds the 95 % interval of each that is a mean over responses.

    score_mean, score_std, gold_mean?, kl (nats per response), length_mean (tokens), eos_rate, distinct_1, distinct_2,
    perplexity? (on held-out demonstrations, measured by the caller); against a baseline also
    win_rate_by_score, win_rate_by_gold? and win_rate, the one of the two that counts (gold where there is one).
    judges: what the scores are, and what the gold marks are, in words.
    """
    columns = {"score_mean": answers.scores, "gold_mean": answers.gold, "kl": answers.kl}
    columns |= {"length_mean": answers.lengths, "eos_rate": answers.finished}
    intervals = {
        name: mean_interval(values, num_bootstrap, seed, answers.groups) if values is not None else None
        for name, values in columns.items()
    }
    figures = {name: interval and interval["value"] for name, interval in intervals.items()}
    figures |= {"score_std": float(np.std(answers.scores)), "perplexity": perplexity}
    figures |= {"distinct_1": distinct_n(answers.texts, 1), "distinct_2": distinct_n(answers.texts, 2)}
    wins = _win_rates(answers, baseline, judges, num_bootstrap, seed) if baseline is not None else {"win_rate": None}
    return figures | {"intervals": intervals} | wins


def _win_rates(answers, baseline, judges, num_bootstrap, seed):
    assert list(answers.groups) == list(baseline.groups), "the two policies answered different prompts"
    by_score = win_rate(*_paired(answers, baseline, "scores"), num_bootstrap, seed, answers.groups)
    if answers.gold is None:
        return {"win_rate": {"by": judges[0]} | by_score, "win_rate_by_score": by_score, "win_rate_by_gold": None}
    by_gold = win_rate(*_paired(answers, baseline, "gold"), num_bootstrap, seed, answers.groups)
    headline = {"by": judges[1]} | by_gold
    return {"win_rate": headline, "win_rate_by_score": by_score, "win_rate_by_gold": by_gold}


def _paired(answers, baseline, judge):
    """What the judge ("scores" or "gold") gave to both, [n] and [n]; the same text counts the same, a tie.

    In another batch a reward model scores it a little differently, by more than TIE in bfloat16.
    """
    new, old = (np.asarray(getattr(policy, judge), dtype=float) for policy in (answers, baseline))
    same = np.array([a == b for a, b in zip(answers.texts, baseline.texts, strict=True)], dtype=bool)
    return np.where(same, old, new), old


def pick_examples(sft, ppo, prompts, num_examples, seed):
    """Responses to show side by side: a quarter PPO's largest losses (if it has any), the rest drawn at random.

    prompts [n]: text or messages of each response's prompt. Nothing is picked because it looks good.
    """
    new, old = _paired(ppo, sft, "scores" if ppo.gold is None else "gold")
    won = outcomes(new, old)
    losing = np.flatnonzero(won == 0)
    worst = losing[np.argsort((new - old)[losing], kind="stable")][: num_examples // 4]
    others = np.setdiff1d(np.arange(len(prompts)), worst)
    drawn = np.random.default_rng(seed).permutation(others)[: num_examples - len(worst)]
    picked = [(i, "largest loss") for i in worst] + [(i, "at random") for i in sorted(drawn)]
    return [_example(sft, ppo, prompts, i, won[i]) | {"picked": why} for i, why in picked]


def _example(sft, ppo, prompts, i, won):
    return {
        "prompt": prompts[i],
        "sft": sft.texts[i],
        "ppo": ppo.texts[i],
        "scores": {"sft": float(sft.scores[i]), "ppo": float(ppo.scores[i])},
        "gold": None if ppo.gold is None else {"sft": float(sft.gold[i]), "ppo": float(ppo.gold[i])},
        "winner": "tie" if won == 0.5 else "ppo" if won else "sft",
    }


def compare_policies(sft, ppo, prompts, perplexities, judges, num_bootstrap, num_examples, seed):
    """The first block of report.json, from the Answers of both policies to the same prompts.

    prompts [n]: text or messages of each response's prompt; perplexities: {"sft": float or None, "ppo": ...}.
    judges: see `summarise_policy`.
    """
    figures = {
        "sft": summarise_policy(sft, perplexities["sft"], num_bootstrap, seed),
        "ppo": summarise_policy(ppo, perplexities["ppo"], num_bootstrap, seed, baseline=sft, judges=judges),
    }
    return {
        "win_rate": figures["ppo"]["win_rate"],
        "policies": figures,
        "num_prompts": len(set(ppo.groups)),
        "num_responses": len(ppo.texts),
        "scores": {"sft": _floats(sft.scores), "ppo": _floats(ppo.scores)},
        "gold": None if ppo.gold is None else {"sft": _floats(sft.gold), "ppo": _floats(ppo.gold)},
        "examples": pick_examples(sft, ppo, prompts, num_examples, seed),
    }


def _floats(values):
    return [float(value) for value in values]


def read_curves(rows: Iterable[dict]) -> dict:
    """Every objective/, response/ and eval/ metric of metrics.jsonl's rows: {name: {"step": [...], "value": [...]}}.

    A resumed run writes some steps twice; the later line counts. What is not a finite number is left out.
    """
    points = {}
    for row in rows:
        for name, value in row.items():
            wanted = name.startswith(("objective/", "response/", "eval/")) and isinstance(value, int | float)
            if wanted and math.isfinite(value):
                points.setdefault(name, {})[row["step"]] = value
    return {name: {"step": sorted(at), "value": [at[step] for step in sorted(at)]} for name, at in points.items()}


def read_frontier(curves):
    """[[kl, score, step], ...] of the evaluations during training, from curves["eval/kl"] and curves["eval/scores"]."""
    kl, score = (curves.get(name, {"step": [], "value": []}) for name in ("eval/kl", "eval/scores"))
    score_at = dict(zip(score["step"], score["value"], strict=True))
    points = zip(kl["step"], kl["value"], strict=True)
    return [[nats, score_at[step], step] for step, nats in points if step in score_at]

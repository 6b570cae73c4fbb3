"""report.html: what PPO changed, for a person. report.json in words and plots, one file that needs no network.

The structure of the report is described in reward/compare.py. Parts that are absent are left out of the page. Whatever
a model, a data file or a config says is untrusted text: it reaches the page only through Jinja2's escaping.
"""

import json
import math
import unicodedata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reward import plots

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

# Where a figure calls for a word of caution.
LENGTH_GROWTH = 1.5  # PPO's mean length over SFT's
PERPLEXITY_GROWTH = 1.5  # on held-out demonstrations
KL_NEAR_BUDGET = 0.9  # share of the budget that is used
LOW_EOS_RATE = 0.9
FEW_PROMPTS = 50

# (key in policies, name, what it says, decimals; None: shown as a percentage)
FIGURES = (
    ("gold_mean", "Gold mark", "mean mark by the written rule that training never saw", 2),
    ("score_mean", "Reward score", "what the reward model thinks of the answers: PPO is trained to raise it", 2),
    ("score_std", "Spread of the score", "standard deviation over answers; near 0 when all answers are alike", 2),
    ("kl", "KL", "how far the policy moved from SFT, nats per response", 2),
    ("length_mean", "Length", "tokens per answer; reward models often like length for its own sake", 1),
    ("eos_rate", "Finished answers", "ended by the model itself, not cut at the token limit", None),
    ("distinct_1", "Distinct words", "different words among all words; a fall means repetition", None),
    ("distinct_2", "Distinct word pairs", "different pairs among all pairs of neighbouring words", None),
    ("perplexity", "Perplexity", "surprise at held-out demonstrations; a rise means forgetting", 2),
    ("win_rate_by_gold", "Wins by gold rule", "share of prompts where PPO's answer is marked higher, ties half", None),
    ("win_rate_by_score", "Wins by reward score", "the same, judged by the reward model", None),
)

# The same for the reward model's report card (reward/report.py).
CARD = (
    ("pair_accuracy", "Pair accuracy", "of two ranked answers, the better one gets the higher score", None),
    ("gold_pair_accuracy", "Gold rule on the same pairs", "the ceiling that the annotators' noise leaves", None),
    ("human_agreement", "Annotators' agreement", "of two annotators on the same two answers", None),
    ("baselines.length", "Baseline: longer answer", "always prefer the longer of the two", None),
    ("baselines.random", "Baseline: coin", "", None),
    ("by_length.better_shorter", "Where the better is shorter", "pair accuracy when length is no help", None),
    ("top1", "Best answer found", "of all answers to a prompt", None),
    ("kendall_tau_b", "Kendall's tau-b", "agreement with the whole ranking, \N{MINUS SIGN}1 to 1", 2),
    ("score_length_spearman", "Score follows length", "rank correlation within a prompt, \N{MINUS SIGN}1 to 1", 2),
    ("ece", "Calibration error", "predicted against observed preference, 0 is perfect", 3),
    ("brier", "Brier score", "squared error of the predicted preference, 0.25 is a coin", 3),
)


def render(report):
    """The whole page, from a report as described in reward/compare.py."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=show_hidden,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        verdict=verdict(report),
        simulated=" ".join(_simulated(report)),
        bar=win_bar(report),
        warnings=warnings(report),
        figures=figure_rows(report.get("policies")),
        training=_unescaped(plots.training_plots(report)),
        answers=_unescaped(plots.answer_plots(report)),
        calibration=_unescaped([plots.calibration_plot(_card(report).get("reliability"))]),
        card=card_rows(_card(report)),
        gaps=gap_rows(_card(report)),
        card_size=card_size(_card(report)),
        examples=[example_view(example) for example in report.get("examples") or []],
        facts=facts(report),
        lineage=lineage_rows(report.get("lineage")),
        config=_config_text(report.get("config")),
    )


def _unescaped(drawings):
    """Plots that have something to show. Their SVG is ours: the one thing that goes into the page as it is."""
    return [(plot.title, plot.alt, Markup(plot.svg)) for plot in drawings if plot]


# -- words ----------------------------------------------------------------------------------------------------------


def headline(report):
    """The result in one sentence, and a second where it is simulated."""
    return " ".join([verdict(report), *_simulated(report)])


def verdict(report):
    rate = report["win_rate"]
    judge = "the gold rule" if _judged_by_rule(report) else "the reward model"
    sentence = f"PPO wins {percent(rate['value'])} of {report['num_prompts']} held-out prompts against SFT"
    return sentence + f" (95 % interval {100 * rate['low']:.0f}-{percent(rate['high'])}), judged by {judge}."


def _simulated(report):
    if not report.get("simulated"):
        return []
    return ["Annotators and judge are simulated." if _judged_by_rule(report) else "The annotators are simulated."]


def warnings(report):
    """What the figures call for, in plain words; empty when they call for nothing."""
    outcome = (_win_rate_unclear, _few_prompts, _judge_is_the_reward, _nothing_exported)
    side_effects = (_score_up_gold_down, _kl_over_budget, _length_grew, _answers_unfinished, _demonstrations_forgotten)
    messages = [check(report) for check in (*outcome, *side_effects, _reward_no_better_than_length)]
    return [message for message in messages if message]


def _win_rate_unclear(report):
    rate = report["win_rate"]
    if rate["high"] < 0.5:
        return f"PPO is worse than SFT: even the upper end of the interval, {percent(rate['high'])}, is below 50 %."
    if rate["low"] <= 0.5:
        return "The interval of the win rate includes 50 %: on these prompts PPO cannot be told from SFT."


def _few_prompts(report):
    if report["num_prompts"] < FEW_PROMPTS:
        return (
            f"Only {report['num_prompts']} held-out prompts: too few to be sure; {FEW_PROMPTS} is little, 200 better."
        )


def _judge_is_the_reward(report):
    if not _judged_by_rule(report):
        return "The judge is the reward model, which PPO is trained to please: a win may be a win in its eyes only."


def _nothing_exported(report):
    if report.get("exported_step") == 0:
        return "The best checkpoint is step 0: PPO changed nothing, the exported policy is the SFT policy."


def _score_up_gold_down(report):
    (score, new_score), (gold, new_gold) = _change(report, "score_mean"), _change(report, "gold_mean")
    if None not in (score, new_score, gold, new_gold) and new_score > score and new_gold < gold:
        fall = f"from {gold:.2f} to {new_gold:.2f}"
        return (
            f"The reward score rose while the gold mark fell {fall}: likely reward hacking. Try a higher ppo.kl_coef."
        )


def _kl_over_budget(report):
    kl, budget = _change(report, "kl")[1], report.get("kl_budget")
    if kl is not None and budget and kl >= KL_NEAR_BUDGET * budget:
        where = "over" if kl > budget else "close to"
        return f"KL is {where} its budget ({kl:.1f} of {budget:.1f} nats per response): the policy is far from SFT."


def _length_grew(report):
    sft, ppo = _change(report, "length_mean")
    if None not in (sft, ppo) and ppo > LENGTH_GROWTH * sft:
        return f"Answers grew from {sft:.0f} to {ppo:.0f} tokens: part of the gain may be length alone."


def _answers_unfinished(report):
    _, rate = _change(report, "eos_rate")
    if rate is not None and rate < LOW_EOS_RATE:
        return f"Only {percent(rate)} of PPO's answers end by themselves, the others are cut at the token limit."


def _demonstrations_forgotten(report):
    sft, ppo = _change(report, "perplexity")
    if None not in (sft, ppo) and ppo > PERPLEXITY_GROWTH * sft:
        return f"Perplexity on held-out demonstrations rose from {sft:.1f} to {ppo:.1f}: PPO forgets what SFT learned."


def _reward_no_better_than_length(report):
    value, low, _ = _interval(_at(_card(report), "pair_accuracy"))
    length, _, _ = _interval(_at(_card(report), "baselines.length"))
    if None not in (value, length) and (value if low is None else low) <= length:
        figures = f"{percent(value)} of pairs against {percent(length)}"
        return f"The reward model is not clearly better than always preferring the longer answer ({figures})."


# -- figures --------------------------------------------------------------------------------------------------------


def figure_rows(policies):
    """SFT beside PPO: [(name, note, (value, interval) of SFT, the same of PPO, difference)], all text.

    A figure that neither has is left out.
    """
    sft, ppo = ((policies or {}).get(name) or {} for name in ("sft", "ppo"))
    rows = []
    for key, name, note, decimals in FIGURES:
        if (_value(sft, key), _value(ppo, key)) != (None, None):
            cells = _cell(sft, key, decimals), _cell(ppo, key, decimals)
            rows.append((name, note, *cells, _difference(sft, ppo, key, decimals)))
    return rows


def _cell(policy, key, decimals):
    _, low, high = _interval((policy.get("intervals") or {}).get(key) or policy.get(key))
    between = "" if low is None or low == high else f"{number(low, decimals)} to {number(high, decimals)}"
    return number(_value(policy, key), decimals), between.replace(" %", "")


def _difference(sft, ppo, key, decimals):
    old, new = _value(sft, key), _value(ppo, key)
    return "" if None in (old, new) else number(new - old, decimals, sign="+").replace("%", "pp")


def card_rows(card):
    """The reward model's report card: [(name, note, value, interval)], what is not known left out."""
    rows = [(name, note, *_cell({key: _at(card, key)}, key, decimals)) for key, name, note, decimals in CARD]
    return [row for row in rows if row[2] != DASH]


def gap_rows(card):
    """Pair accuracy by how far apart the annotators placed the two answers, in the shape of card_rows."""
    rows = []
    for gap in card.get("by_rank_gap") or []:
        name = f"{gap['gap']} place{'s' * (gap['gap'] != 1)} apart"
        rows.append((name, f"{gap['num_pairs']:,} pairs", number(gap["value"], None), ""))
    return rows


def card_size(card):
    """What the report card was measured on, e.g. "1,500 pairs in 300 rankings of 120 prompts"; empty if not known."""
    counts = [card.get(name) for name in ("num_pairs", "num_rankings", "num_prompts")]
    return "" if None in counts else "{:,} pairs in {:,} rankings of {:,} held-out prompts".format(*counts)


def _at(card, path):
    """card["a"]["b"] for "a.b", None where there is none."""
    for name in path.split("."):
        card = (card or {}).get(name)
    return card


def win_bar(report):
    """Shares of wins, ties and losses in percent, and the interval; None where they were not counted."""
    rate = report["win_rate"]
    counts = {name: rate.get(name) for name in ("wins", "ties", "losses")}
    if None in counts.values() or not sum(counts.values()):
        return None
    shares = {name: f"{100 * count / sum(counts.values()):.2f}" for name, count in counts.items()}
    ends = {"low": f"{100 * rate['low']:.2f}", "width": f"{100 * (rate['high'] - rate['low']):.2f}"}
    return {"counts": counts, "shares": shares, **ends}


# -- examples and provenance ----------------------------------------------------------------------------------------


def example_view(example):
    """One prompt and its two answers, in the terms of the template."""
    prompt = example["prompt"]
    turns = [("user", prompt)] if isinstance(prompt, str) else [(turn["role"], turn["content"]) for turn in prompt]
    answers = [_answer_view(example, name) for name in ("sft", "ppo")]
    return {"turns": turns, "answers": answers, "picked": example.get("picked") or ""}


def _answer_view(example, name):
    gold = (example.get("gold") or {}).get(name)
    return {
        "name": name,
        "text": example[name],
        "score": number((example.get("scores") or {}).get(name), 2),
        "gold": "" if gold is None else number(gold, 2),
        "mark": {name: "better", "tie": "tie"}.get(example.get("winner"), ""),
    }


def facts(report):
    """[(name, value)] of the run, without those that are not known."""
    versions = ", ".join(f"{name} {version}" for name, version in (report.get("versions") or {}).items())
    known = {
        "Run": report.get("run"),
        "Seed": report.get("seed"),
        "Judge": report["win_rate"].get("by"),
        "Held-out prompts": report.get("num_prompts"),
        "Answers of each policy": report.get("num_responses"),
        "Exported PPO step": report.get("exported_step"),
        "KL budget": report.get("kl_budget") and f"{report['kl_budget']} nats per response",
        "Versions": versions,
    }
    return [(name, value) for name, value in known.items() if value not in (None, "")]


def lineage_rows(lineage):
    """[{"stage", "path", "created", "sha256", "data": [(path, note)]}], hashes cut to 12 digits."""
    rows = []
    for artifact in lineage or []:
        row = {name: artifact.get(name) or "" for name in ("stage", "path", "created")}
        data = [(source.get("path", ""), _data_note(source)) for source in artifact.get("data") or []]
        rows.append(row | {"sha256": _cut(artifact.get("sha256")), "data": data})
    return rows


def _data_note(source):
    records = f"{source['records']} records" if source.get("records") is not None else ""
    return ", ".join(part for part in (records, _cut(source.get("sha256"))) if part)


def _cut(digest):
    return str(digest or "").removeprefix("sha256:")[:12]


def _config_text(config):
    if config is None or isinstance(config, str):
        return config
    return json.dumps(config, indent=2, ensure_ascii=False, default=str)


# -- small things ---------------------------------------------------------------------------------------------------


def percent(share):
    return f"{100 * share:.0f} %"


def number(value, decimals, sign="-"):
    """A number for a table: a true minus sign, a dash where there is none; decimals None makes it a percentage."""
    if not _is_number(value):
        return DASH
    text = f"{100 * value:{sign}.1f} %" if decimals is None else f"{value:{sign}.{decimals}f}"
    return text.replace("-", MINUS)


def show_hidden(value):
    """Text in which characters that hide or reorder what is read are named, e.g. a right-to-left override."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(f"[U+{ord(c):04X}]" if _hides(c) else c for c in value)


def _hides(character):
    if unicodedata.category(character) in ("Cc", "Cs"):
        return character not in "\r\n\t"
    return character in "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"


def _is_number(value):
    return isinstance(value, int | float) and math.isfinite(value)


def _interval(figure):
    """(value, low, high) of a figure that is a number, {"value", "low", "high"} or absent; None where not known."""
    figure = figure if isinstance(figure, dict) else {"value": figure}
    return tuple(figure.get(name) if _is_number(figure.get(name)) else None for name in ("value", "low", "high"))


def _value(policy, key):
    return _interval(policy.get(key))[0]


def _change(report, key):
    """(SFT's figure, PPO's), None for what is not known."""
    policies = report.get("policies") or {}
    return tuple(_value(policies.get(name) or {}, key) for name in ("sft", "ppo"))


def _card(report):
    return report.get("reward_card") or {}


def _judged_by_rule(report):
    return str(report["win_rate"].get("by", "")).startswith("gold rule")

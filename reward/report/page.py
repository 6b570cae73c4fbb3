"""report.html: what PPO changed, for a person. report.json in words and plots, one file that needs no network.

The structure of the report is described in compare.py. Parts that are absent are left out of the page. Whatever a
model, a data file or a config says is untrusted text: it reaches the page only through Jinja2's escaping.
"""

import json
import unicodedata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reward.report import plots
from reward.report.cautions import warnings
from reward.report.figures import DASH, at, count_of, interval_of, number, percent, value_of
from reward.report.intervals import WILSON_BELOW
from reward.report.judges import formula, has_reward_model, is_optimised, judged_by_rule

# (key in policies, name, what it says, decimals; None: shown as a percentage)
FIGURES = (
    ("gold_mean", "Gold mark", "mean mark by the gold rule", 2),
    ("score_mean", "Reward score", "mean score by the reward that PPO is trained to raise", 2),
    ("score_std", "Spread of the score", "standard deviation over answers; near 0 when all answers are alike", 2),
    ("kl", "KL", "how far the policy moved from SFT, nats per response", 2),
    ("length_mean", "Length", "tokens per answer; reward models often like length for its own sake", 1),
    ("eos_rate", "Finished answers", "ended by the model itself, not cut at the token limit", None),
    ("distinct_1", "Distinct words", "different words among all words; a fall means repetition", None),
    ("distinct_2", "Distinct word pairs", "different pairs among all pairs of neighbouring words", None),
    ("perplexity", "Perplexity", "surprise at held-out demonstrations; a rise means forgetting", 2),
    ("win_rate_by_gold", "Wins by gold rule", "share of answers that are marked higher than SFT's, ties half", None),
    ("win_rate_by_score", "Wins by reward score", "the same, judged by the reward that PPO is trained to raise", None),
)

# The same for the reward model's report card (reward/report/card.py).
CARD = (
    ("pair_accuracy", "Pair accuracy", "of two ranked answers, the better one gets the higher score", None),
    ("gold_pair_accuracy", "Gold rule on the same pairs", "the ceiling that the annotators' noise leaves", None),
    ("human_agreement", "Annotators' agreement", "of two known annotators on the same two answers", None),
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
    """The whole page, from a report as described in reward/report/compare.py."""
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
        figures=figure_rows(report),
        training=_unescaped(plots.training_plots(report)),
        answers=_unescaped(plots.answer_plots(report)),
        cards=[card_view(name, card) for name, card in (report.get("reward_cards") or {}).items()],
        notes=report.get("notes") or [],
        few="; of win rates over few prompts, Wilson's" if report["num_prompts"] < WILSON_BELOW else "",
        examples=[example_view(example) for example in report.get("examples") or []],
        facts=facts(report),
        lineage=lineage_rows(report.get("lineage")),
        configs=[config_view(config) for config in report.get("configs") or []],
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
    between = f"95 % interval {100 * rate['low']:.0f}-{percent(rate['high'])}"
    return (
        f"PPO wins {percent(rate['value'])} of {_compared(report)} against SFT ({between}), judged by {_judge(report)}."
    )


def _compared(report):
    prompts, num_responses = count_of(report["num_prompts"], "held-out prompt"), report.get("num_responses")
    return prompts if num_responses in (None, report["num_prompts"]) else f"{num_responses:,} answers to {prompts}"


def _judge(report):
    if judged_by_rule(report):
        return "the gold rule" + (", which PPO optimised too" if is_optimised(report) else "")
    return f"the {report['win_rate']['by']} that PPO optimised"


def _simulated(report):
    sentences = {
        (True, True): "Annotators and judge are simulated.",
        (True, False): "The annotators are simulated.",
        (False, True): "The judge is simulated.",
    }
    made_up = sentences.get((has_reward_model(report), judged_by_rule(report)))
    return [made_up] if report.get("simulated") and made_up else []


# -- figures --------------------------------------------------------------------------------------------------------


def figure_rows(report):
    """SFT beside PPO: [(name, note, (value, interval) of SFT, the same of PPO, difference)], all text.

    A figure that neither has is left out.
    """
    sft, ppo = ((report.get("policies") or {}).get(name) or {} for name in ("sft", "ppo"))
    rows = []
    for key, name, note, decimals in FIGURES:
        if (value_of(sft, key), value_of(ppo, key)) != (None, None):
            cells = _cell(sft, key, decimals), _cell(ppo, key, decimals)
            rows.append((name, note + _further(report, key, ppo), *cells, _difference(sft, ppo, key, decimals)))
    return rows


def _further(report, key, ppo):
    """What a reader of this very figure has to know."""
    if key == "kl" and value_of(ppo, key) is not None and value_of(ppo, key) < 0:
        return "; an estimate from the sampled tokens, which can fall below 0 where it hardly moved"
    if key == "perplexity" and report.get("num_demonstrations"):
        return f" ({count_of(report['num_demonstrations'], 'example')})"
    return ""


def _cell(policy, key, decimals):
    _, low, high = interval_of((policy.get("intervals") or {}).get(key) or policy.get(key))
    between = "" if low is None or low == high else f"{number(low, decimals)} to {number(high, decimals)}"
    return number(value_of(policy, key), decimals), between.replace(" %", "")


def _difference(sft, ppo, key, decimals):
    old, new = value_of(sft, key), value_of(ppo, key)
    return "" if None in (old, new) else number(new - old, decimals, sign="+").replace("%", "pp")


def card_rows(card):
    """The reward model's report card: [(name, note, value, interval)], what is not known left out."""
    rows = []
    for key, name, note, decimals in CARD:
        cell = _cell({key: at(card, key)}, key, decimals)
        if cell[0] != DASH:
            rows.append((name, note + _number_of(at(card, key)), *cell))
    return rows


def _number_of(figure):
    """What a figure is over, where it says so, e.g. " (120 rankings)"."""
    figure = figure if isinstance(figure, dict) else {}
    counts = [
        count_of(figure[f"num_{noun}s"], noun) for noun in ("pair", "ranking", "prompt") if f"num_{noun}s" in figure
    ]
    return f" ({counts[0]})" if counts else ""


def card_view(name, card):
    """One reward model's report card, in the terms of the template."""
    title = "Reward model calibration" if name == "reward model" else f"Calibration of {name}"
    plot = _unescaped([plots.calibration_plot(card.get("reliability"), title)])
    return {"name": name, "size": card_size(card), "rows": card_rows(card), "gaps": gap_rows(card), "plots": plot}


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
        "Seed of the answers": report.get("seed"),
        "Judge": report["win_rate"].get("by"),
        "PPO optimised": report.get("rewards") and formula(report["rewards"]),
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
        row = {name: artifact.get(name) or "" for name in ("stage", "path", "created", "base")}
        data = [(source.get("path", ""), _data_note(source)) for source in artifact.get("data") or []]
        rows.append(row | {"sha256": _cut(artifact.get("sha256")), "data": data})
    return rows


def _data_note(source):
    records = f"{source['records']} records" if source.get("records") is not None else ""
    return ", ".join(part for part in (records, _cut(source.get("sha256"))) if part)


def _cut(digest):
    return str(digest or "").removeprefix("sha256:")[:12]


def config_view(config):
    """What one stage read of its config, what differs from the shipped config first: (key, value, default)."""
    changed = [(key, _text(pair["value"]), _text(pair["default"])) for key, pair in config["changed"].items()]
    values = [f"{key}: {_text(value)}" for key, value in config["values"].items()]
    note = f"{len(changed)} of {count_of(len(values), 'setting')} not as shipped"
    return {name: config[name] for name in ("stage", "path")} | {
        "note": note,
        "changed": changed,
        "all": "\n".join(values),
    }


def _text(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# -- small things ---------------------------------------------------------------------------------------------------


def show_hidden(value):
    """Text in which characters that hide or reorder what is read are named, e.g. a right-to-left override."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(f"[U+{ord(c):04X}]" if _hides(c) else c for c in value)


def _hides(character):
    if unicodedata.category(character) in ("Cc", "Cs"):
        return character not in "\r\n\t"
    return character in "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"

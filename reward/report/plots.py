"""The plots of the evaluation report, each as an inline SVG with a sentence for those who cannot see it.

Drawn on matplotlib's Figure, never on pyplot: nothing global stays behind, no window system is asked for. The same
numbers give the same bytes. Colours are Okabe and Ito's, told apart with any colour vision; shape or dash differs too.
"""

import io
import math
import re
from dataclasses import dataclass
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.figure import Figure

SFT, PPO, EXPORTED = "#0072B2", "#D55E00", "#009E73"
INK, MUTED, FAINT = "#333333", "#767676", "#e4e4e4"
STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and is small
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same layout everywhere
    "font.size": 8,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "text.color": INK,
    "lines.linewidth": 1.4,
}
TERM = "objective/scores/"  # what the names of the terms' curves begin with
TERM_LOOKS = [(SFT, "-"), (PPO, "--"), (EXPORTED, ":"), (INK, "-."), ("#CC79A7", "-"), ("#E69F00", "--")]
BOUND = {"color": INK, "linestyle": (0, (4, 2)), "linewidth": 0.9}  # of a line not to cross, or to compare with
DOTS = {"color": PPO, "marker": "o", "markersize": 3.5}  # of evaluations on held-out prompts


@dataclass(frozen=True)
class Plot:
    title: str
    alt: str  # what the plot shows, as a sentence
    svg: str


def training_plots(report):
    """Reward, KL and length over PPO's steps, and the frontier, of a report (see compare.py); None: absent."""
    get, exported, budget = (report.get("curves") or {}).get, report.get("exported_step"), report.get("kl_budget")
    bound = None if budget is None else ("KL budget", budget)
    kl, length = (get("objective/kl"), get("eval/kl")), (get("response/length_mean"), get("eval/length_mean"))
    return [
        curve_plot("Reward score", "score", get("objective/scores"), get("eval/scores"), None, exported),
        terms_plot(
            {name.removeprefix(TERM): get(name) for name in report.get("curves") or {} if name.startswith(TERM)}
        ),
        curve_plot("KL from SFT", "nats per response", *kl, bound, exported),
        curve_plot("Response length", "tokens", *length, None, exported),
        frontier_plot(report.get("frontier"), exported, budget),
    ]


def answer_plots(report):
    """Distribution of scores and of gold marks over the held-out answers; None: absent."""
    scores, gold = report.get("scores") or {}, report.get("gold") or {}
    return [
        histogram_plot("Reward scores", "reward score", scores.get("sft"), scores.get("ppo")),
        histogram_plot("Gold marks", "gold mark", gold.get("sft"), gold.get("ppo")),
    ]


def curve_plot(title, unit, train, evaluated, bound=None, exported_step=None):
    """One metric over PPO steps: every rollout as a thin line, held-out evaluations as dots, the exported step marked.

    train, evaluated: {"step": [...], "value": [...]} or None; bound: (label, value) of a line not to cross, or None.
    None where there is nothing to draw.
    """
    train, evaluated = _points(train), _points(evaluated)
    if not train and not evaluated:
        return None

    def draw(axes):
        if train:
            axes.plot(*zip(*train, strict=True), color=MUTED, linewidth=0.9, label="training rollouts")
        if evaluated:
            axes.plot(*zip(*evaluated, strict=True), **DOTS, label="held-out prompts")
        if bound:
            axes.axhline(bound[1], **BOUND, label=bound[0])
        if exported_step is not None:
            label = f"exported (step {exported_step})"
            axes.axvline(exported_step, color=EXPORTED, linestyle=(0, (1, 1.5)), linewidth=1.3, label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("PPO step")
        axes.set_ylabel(unit)

    told = [_trend("in training", train), _trend("on held-out prompts", evaluated)]
    return Plot(title, f"{title} over PPO steps, {unit}: {'; '.join(filter(None, told))}.", _svg(title, draw))


def terms_plot(terms):
    """What each term of the reward says, before its weight, over PPO's steps; None where there are no terms.

    terms: {name: {"step": [...], "value": [...]}}
    """
    terms = {name: points for name, series in terms.items() if (points := _points(series))}
    if not terms:
        return None

    def draw(axes):
        for (name, points), look in zip(terms.items(), cycle(TERM_LOOKS)):
            axes.plot(*zip(*points, strict=True), color=look[0], linestyle=look[1], label=_plain(name))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="PPO step", ylabel="score before its weight")

    told = [_trend(f"{name} in training", points) for name, points in terms.items()]
    return Plot("Reward terms", f"Terms of the reward over PPO steps: {'; '.join(told)}.", _svg("terms", draw))


def _plain(name):
    """A label that matplotlib shows as it is: it hides what begins with _ and sets what stands in $ as a formula."""
    return " " + name.replace("$", r"\$")


def _trend(where, points):
    if not points:
        return ""
    (first, start), (last, end) = points[0], points[-1]
    return f"{where} from {start:.3g} at step {first} to {end:.3g} at step {last}"


def frontier_plot(frontier, exported_step, kl_budget):
    """Held-out score against KL, one dot an evaluation, joined in the order of training; None without evaluations."""
    frontier = [point for point in frontier or [] if _finite(point)]
    if not frontier:
        return None
    kl, score, step = zip(*frontier, strict=True)
    exported = [point for point in frontier if point[2] == exported_step]

    def draw(axes):
        axes.plot(kl, score, **DOTS, linewidth=0.8, label="evaluations, in order")
        for i in sorted({0, len(step) - 1}):
            axes.annotate(f"step {step[i]}", (kl[i], score[i]), (7, -3), textcoords="offset points", fontsize=7)
        if exported:
            label = f"exported (step {exported_step})"
            axes.plot(*exported[0][:2], color=EXPORTED, marker="*", markersize=11, linestyle="", label=label)
        if kl_budget is not None:
            axes.axvline(kl_budget, **BOUND, label="KL budget")
        axes.set_xlabel("KL from SFT, nats per response")
        axes.set_ylabel("reward score")

    first, last = (f"score {score[i]:.3g} at {kl[i]:.3g} nats" for i in (0, -1))
    alt = f"Reward score against KL in {len(frontier)} held-out evaluations, from {first} to {last}"
    alt += f"; exported: score {exported[0][1]:.3g} at {exported[0][0]:.3g} nats." if exported else "."
    return Plot("Score-KL frontier", alt, _svg("frontier", draw))


def histogram_plot(title, unit, sft, ppo):
    """How often each value occurs in both policies' answers, with their means; None where either has none."""
    sft, ppo = ([value for value in values or [] if _finite([value])] for values in (sft, ppo))
    if not sft or not ppo:
        return None
    mean = {"SFT": float(np.mean(sft)), "PPO": float(np.mean(ppo))}
    edges = np.histogram_bin_edges(sft + ppo, bins=min(24, 4 + math.isqrt(len(sft))))

    def draw(axes):
        axes.hist(sft, edges, color=SFT, alpha=0.45, label=f"SFT, mean {mean['SFT']:.2f}")
        axes.hist(ppo, edges, color=PPO, histtype="step", linewidth=1.5, label=f"PPO, mean {mean['PPO']:.2f}")
        axes.axvline(mean["SFT"], color=SFT, linestyle=(0, (1, 1.5)), linewidth=1.2)
        axes.axvline(mean["PPO"], color=PPO, linestyle=(0, (4, 2)), linewidth=1.2)
        axes.set_xlabel(unit)
        axes.set_ylabel("answers")

    alt = f"Histogram of the {unit} of {len(sft)} SFT answers (mean {mean['SFT']:.2f})"
    alt += f" and {len(ppo)} PPO answers (mean {mean['PPO']:.2f})."
    return Plot(title, alt, _svg(title, draw))


def calibration_plot(bins, title="Reward model calibration"):
    """How often the answer that the reward model gives probability p of being better was preferred, over p.

    bins: [{"predicted", "observed", "count"}], both 0 to 1, a dot's area grows with its pairs; None without bins.
    """
    bins = sorted((b["predicted"], b["observed"], b["count"]) for b in bins or [] if b["count"] and _finite(b.values()))
    if not bins:
        return None
    predicted, observed, count = zip(*bins, strict=True)

    def draw(axes):
        axes.plot([0, 1], [0, 1], **BOUND, label="perfect calibration")
        axes.plot(predicted, observed, color=SFT, linewidth=1)
        areas = [12 + 60 * c / max(count) for c in count]
        axes.scatter(predicted, observed, areas, color=SFT, label="pairs (number beside)")
        for x, y, c in bins:
            axes.annotate(str(c), (x, y), (0, -13), textcoords="offset points", ha="center", fontsize=7)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.12, 1.05))
        axes.set(xlabel="predicted probability of being better", ylabel="share preferred")

    gap = float(np.average(np.abs(np.subtract(predicted, observed)), weights=count))
    alt = f"Reliability curve over {sum(count)} pairs in {len(bins)} bins: "
    alt += f"prediction and observation differ by {gap:.2f} on average."
    return Plot(title, alt, _svg(title, draw))


def _svg(name, draw):
    """The SVG of what draw(axes) draws, ready to stand in an HTML page beside others."""
    prefix = re.sub(r"\W+", "-", name.lower())
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": prefix}):
        figure = Figure(figsize=(4.0, 2.75), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        _legend_below(figure, axes)
        out = io.StringIO()
        no_date = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_date)
    return _for_html(out.getvalue(), prefix)


def _legend_below(figure, axes):
    """Never on top of the data: constrained layout makes room for it."""
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, handlelength=1.8, columnspacing=1.4)


def _for_html(svg, prefix):
    """Without XML head and name spaces, which HTML does not need, and with ids of its own among several plots.

    The page sets the font, and the line joins that matplotlib's <style> would set for the whole document.
    """
    head, body = svg[svg.index("<svg") :].split(">", 1)
    head = re.sub(r'\s(xmlns(:\w+)?|width|height|version)="[^"]*"', "", head)
    body = re.sub(r"<(style|metadata)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", body.replace("xlink:href", "href"))
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    return f'{head} aria-hidden="true" focusable="false">{body}'


def _points(series):
    return [] if not series else [p for p in zip(series["step"], series["value"], strict=True) if _finite(p)]


def _finite(values):
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)

"""What the lead's pages show, made from the reports: words, pictures and the tables beside them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from markupsafe import Markup

from reward.collect.figures import charts, comparison
from reward.collect.figures.screens import SECONDS_EDGES
from reward.collect.texts import plural

MOST_DAYS = 45  # columns of the chart of progress; more days are put together
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Picture:
    """A chart with the table that says the same."""

    title: str
    svg: Markup
    head: tuple[str, ...]
    rows: list[tuple]
    note: str = ""


# -- words --


def when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def percent(figure: dict) -> str:
    return DASH if figure["value"] is None else f"{100 * figure['value']:.0f} %"


def percent_interval(figure: dict) -> str:
    """E.g. "68-76 %", empty where there is none."""
    if figure.get("low") is None:
        return ""
    return f"{100 * figure['low']:.0f}{DASH}{100 * figure['high']:.0f} %"


def number(figure: dict) -> str:
    return DASH if figure["value"] is None else _minus(f"{figure['value']:.2f}")


def number_interval(figure: dict) -> str:
    if figure.get("low") is None:
        return ""
    return _minus(f"{figure['low']:.2f} to {figure['high']:.2f}")


def with_interval(figure: dict) -> str:
    """E.g. "72 % (95 %: 68-76 %)"."""
    between = percent_interval(figure)
    return percent(figure) + (f" (95 %: {between})" if between else "")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


# -- overview --


def days_picture(progress: dict) -> Picture | None:
    """Rankings by day, or by several days where they would be too many columns."""
    days = progress["by_day"]
    if not days:
        return None
    step = -(-len(days) // MOST_DAYS)
    spans = [days[n : n + step] for n in range(0, len(days), step)]
    rows = [(span[0]["day"], sum(day["num"] for day in span)) for span in spans]
    each = "day" if step == 1 else f"{step} days"
    bars = [{"label": day[5:], "value": num, "told": f"{day}: {num}"} for day, num in rows]
    alt = f"Rankings by {each}, {rows[0][0]} to {days[-1]['day']}: {progress['num_annotations']} in all, "
    alt += f"at most {max(num for _, num in rows)} in a column."
    return Picture(f"Rankings by {each} (UTC)", charts.columns(bars, alt), ("Day", "Rankings"), rows)


def people_picture(progress: dict) -> Picture | None:
    rows = [(row["annotator"], row["num"]) for row in progress["by_annotator"]]
    if not rows:
        return None
    alt = f"Rankings by annotator: {', '.join(f'{who} {num}' for who, num in rows)}."
    bars = [{"label": who, "value": num, "told": f"{who}: {num}"} for who, num in rows]
    return Picture("Rankings by annotator", charts.bars(bars, alt), ("Annotator", "Rankings"), rows)


# -- quality --


def agreement_tiles(report: dict) -> list[dict]:
    """The measures as [{"name", "value", "interval", "of", "means"}]."""
    pairs, ties = report["pair_agreement"], report["pair_agreement_with_ties"]
    tau, alpha = report["kendall_tau_b"], report["krippendorff_alpha"]
    twos = f"{plural(tau['num_twos'], 'pair')} of rankings"
    if tau["num_all_tied"]:
        twos += f"; {tau['num_all_tied']} more in which one ties all"
    coin = "Of the pairs that two people both order, how many they order alike. A coin gets 50 %."
    halves = "Of all pairs: alike or both tied is 1, a tie against an order is a half."
    orders = "Of whole rankings: 1 is the same order, 0 none in common, \N{MINUS SIGN}1 the reverse."
    chance = "Of ranks, ordinal, against what chance would give: 1 is full agreement, 0 is chance."
    if alpha["undefined"]:
        chance = f"Undefined: {alpha['undefined']}."
    return [
        _tile("Pair agreement", percent(pairs), percent_interval(pairs), plural(pairs["num_pairs"], "pair"), coin),
        _tile("With ties", percent(ties), percent_interval(ties), plural(ties["num_pairs"], "pair"), halves),
        _tile("Kendall tau-b", number(tau), number_interval(tau), twos, orders),
        _tile("Krippendorff alpha", number(alpha), number_interval(alpha), f"{alpha['num_answers']:,} answers", chance),
    ]


def _tile(name, value, interval, of, means):
    return {"name": name, "value": value, "interval": interval, "of": of, "means": means}


def agreement_picture(report: dict) -> Picture | None:
    """Pair agreement by the number of answers, and over all."""
    figures = [(f"{row['num_answers']} answers", row) for row in report["by_num_answers"]]
    if not figures:
        return None
    figures.append(("all", report["pair_agreement"]))
    alt = f"Pair agreement by the number of answers: {_told(figures)}; 50 % is a coin."
    rows = [(name, percent(row), percent_interval(row), row["num_pairs"]) for name, row in figures]
    svg = charts.whiskers(_dots(figures), alt, mark=0.5)
    head = ("Item with", "Agreement", "95 %", "Pairs")
    return Picture("Pair agreement by number of answers", svg, head, rows, "Dashed: a coin.")


def position_picture(team: dict) -> Picture | None:
    rows = team["best_by_position"]
    if not rows:
        return None
    names = [{"label": str(n), "told": f"shown as number {n}"} for n in range(1, len(rows) + 1)]
    bars = [row | name for row, name in zip(rows, names, strict=True)]
    told = ", ".join(f"{row['position']}: {percent(row)}" for row in rows)
    table = [(row["position"], percent(row), f"{100 * row['expected']:.0f} %", row["num"]) for row in rows]
    alt = f"How often the answer shown first, second and so on is ranked best: {told}."
    head = ("Place on the page", "Ranked best", "By chance", "Rankings")
    note = "Dashed: chance, as the order on the page is random."
    return Picture("Where the best answer was shown", charts.columns(bars, alt), head, table, note)


def seconds_picture(team: dict) -> Picture | None:
    counts = team["seconds"]["histogram"]
    if not sum(counts):
        return None
    labels = [f"{low}{DASH}{high}" for low, high in pairwise(SECONDS_EDGES)] + [f"{SECONDS_EDGES[-1]}+"]
    rows = list(zip(labels, counts, strict=True))
    columns = zip(SECONDS_EDGES, rows, strict=True)
    bars = [{"label": str(edge), "value": num, "told": f"{label} s: {num}"} for edge, (label, num) in columns]
    spent = team["seconds"]
    alt = f"Active seconds for each of {spent['num']} rankings: median {spent['median']:.0f}, "
    alt += f"half of them between {spent['low']:.0f} and {spent['high']:.0f}."
    note = "Each column is named by the second that it begins with."
    return Picture("Active seconds per ranking", charts.columns(bars, alt), ("Seconds", "Rankings"), rows, note)


# -- annotators --


def gold_picture(rows: Iterable[dict]) -> Picture | None:
    """Accuracy on gold by annotator, the lowest first."""
    known = sorted((row for row in rows if row["gold"]["num"]), key=lambda row: row["gold"]["value"])
    if not known:
        return None
    figures = [(row["annotator"], row["gold"]) for row in known]
    table = [(name, percent(gold), percent_interval(gold), gold["num"]) for name, gold in figures]
    svg = charts.whiskers(_dots(figures), f"Accuracy on gold pairs: {_told(figures)}; 50 % is a coin.", mark=0.5)
    head = ("Annotator", "Right", "95 %", "Gold pairs")
    return Picture("Accuracy on gold pairs", svg, head, table, "Dashed: a coin.")


def first_shown_picture(rows: Iterable[dict]) -> Picture | None:
    """How often the first-shown answer is ranked best, beyond chance, by annotator."""
    known = [(row["annotator"], row["first_shown_best"]) for row in rows if row["first_shown_best"]["num"]]
    if not known:
        return None
    table = [(name, *_against_chance(first)) for name, first in known]
    chance = sum(first["expected"] * first["num"] for _, first in known) / sum(first["num"] for _, first in known)
    alt = f"How often the answer shown first is ranked best: {_told(known)}; by chance about {100 * chance:.0f} %."
    head = ("Annotator", "Ranked best", "95 %", "By chance", "p", "Rankings")
    svg = charts.whiskers(_dots(known), alt, mark=chance)
    return Picture("The answer shown first is ranked best", svg, head, table, "Dashed: chance.")


def _against_chance(first):
    expected = f"{100 * first['expected']:.0f} %"
    return percent(first), percent_interval(first), expected, f"{first['p']:.2g}", first["num"]


def _dots(figures):
    return [{"label": name, "figure": row, "told": f"{name}: {with_interval(row)}"} for name, row in figures]


def _told(figures):
    return ", ".join(f"{name} {with_interval(row)}" for name, row in figures)


# -- comparison --


def comparison_view(report: dict) -> dict:
    """The report with sentences, bars, the matrix of win rates and the picture of strengths, where there are any."""
    is_ranked = any(pair["num_ranked"] for pair in report["pairs"])
    return {
        "name": report["name"],
        "num_items": report["num_items"],
        "caveats": comparison.caveats(report),
        "pairs": [pair_view(pair) for pair in report["pairs"]],
        "policies": report["policies"],
        "matrix": win_matrix(report) if is_ranked and len(report["policies"]) > 2 else [],  # of two: nothing new
        "strengths": strengths_picture(report["strengths"]) if is_ranked else None,
    }


def pair_view(pair: dict) -> dict:
    told = comparison.sentence(pair)
    return {**pair, "sentence": told, "bar": charts.win_bar(pair, told) if pair["num_ranked"] else None}


def win_matrix(report: dict) -> list[tuple[str, ...]]:
    """Rows (policy, its win rate against each of the policies in order)."""
    rates = {}
    for pair in report["pairs"]:
        one, other = (pair["policy"], pair["other"]), (pair["other"], pair["policy"])
        rates[one], rates[other] = with_interval(pair), with_interval(turned(pair))
    names = report["policies"]
    return [(name, *(rates.get((name, other), "") for other in names)) for name in names]


def turned(pair: dict) -> dict:
    """The win rate of the other policy."""
    rate = {"value": pair["value"], "low": pair["high"], "high": pair["low"]}
    return {name: None if share is None else 1 - share for name, share in rate.items()}


def strengths_picture(strengths: list[dict]) -> Picture | None:
    if len(strengths) < 2:
        return None
    ends = [abs(one[name]) for one in strengths for name in ("value", "low", "high") if one[name] is not None]
    edge = max(1.0, -(-max(ends) // 1))
    table = [(one["policy"], number(one), number_interval(one)) for one in strengths]
    told = [f"{name}: {value} ({between})" for name, value, between in table]
    rows = [{"label": one["policy"], "figure": one, "told": what} for one, what in zip(strengths, told, strict=True)]
    alt = f"Bradley-Terry strengths with 95 % intervals: {', '.join(told)}."
    svg = charts.whiskers(rows, alt, low=-edge, high=edge, mark=0.0)
    note = "A policy that is stronger by d wins with probability 1 / (1 + exp(\N{MINUS SIGN}d)). Dashed: the mean."
    return Picture("Bradley-Terry strengths", svg, ("Policy", "Strength", "95 %"), table, note)

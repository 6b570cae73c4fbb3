"""The figures of a collection as tables in the terminal."""

import json
from pathlib import Path

from sqlalchemy.orm import Session

from reward.collect.export.versions import REPORT
from reward.collect.figures import quality
from reward.collect.figures.comparison import caveats, comparison_names, comparison_report, sentence
from reward.collect.texts import plural
from reward.report.card import number_row
from rlhf.tables import table

MEASURES = {  # of agreement_report: what it is, how many of what it is measured on
    "pair_agreement": ("pairs that two people order alike", "num_pairs", "pairs"),
    "pair_agreement_with_ties": ("the same, ties included", "num_pairs", "pairs"),
    "kendall_tau_b": ("Kendall tau-b", "num_twos", "pairs of rankings"),
    "krippendorff_alpha": ("Krippendorff alpha, ordinal", "num_answers", "answers"),
}


def print_stats(session: Session, name: str) -> None:
    """Progress, agreement and annotators."""
    progress = quality.progress_report(session)
    items = ", ".join(f"{count} {state}" for state, count in sorted(progress["items"].items())) or "none"
    print(f"{name}: {progress['done_slots']} of {progress['all_slots']} rankings; items: {items}")
    if progress["num_annotations"]:
        annotators = quality.annotator_report(session)["annotators"]
        print("\n".join(["", *agreement_lines(quality.agreement_report(session)), "", *annotator_lines(annotators)]))


def agreement_lines(report: dict) -> list[str]:
    rows = [("agreement", "value", "95 % interval", "of")]
    for key, (what, number, unit) in MEASURES.items():
        figure = report[key]
        rows.append(number_row(what, figure, figure.get("undefined") or f"{figure[number]} {unit}"))
    return table(rows)


def annotator_lines(rows: list[dict]) -> list[str]:
    """A table, and what calls for a look, which is for the lead to judge."""
    cells = [("annotator", "rankings", "on gold", "like others", "like before", "seconds")]
    for row in rows:
        name = row["annotator"] + (" (paused)" if row["status"] == "paused" else "")
        figures = (number_row("", row[key])[1] for key in ("gold", "agreement", "self_consistency"))
        median = row["seconds"]["median"]
        cells.append((name, row["num_rankings"], *figures, None if median is None else f"{median:.0f}"))
    return table(cells) + [f"look at {row['annotator']}: {'; '.join(row['reasons'])}" for row in rows if row["reasons"]]


def print_comparisons(session: Session, name: str | None) -> None:
    """One comparison of policies, or all of them. Raises NotFound where there is none of the name."""
    for one in comparison_names(session) if name is None else [name]:
        print("\n".join(["", *comparison_lines(comparison_report(session, one))]))


def comparison_lines(report: dict) -> list[str]:
    strengths = [number_row(row["policy"], row) for row in report["strengths"]]
    return [
        f"comparison {report['name']}",
        *(f"  {sentence(pair)}" for pair in report["pairs"]),
        *(f"  {caveat}" for caveat in caveats(report)),
        *(line.rstrip() for line in table([("strength", "value", "95 % interval", ""), *strengths])),
    ]


def print_version(folder: Path) -> None:
    """What an export holds, what it left out and why, and what to do with it."""
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    print("\n".join([f"{folder}: {held(report['counts'])}", *left_out(report)]))
    if report["counts"]["rankings"]:
        print(f"train on it: python -m stages.reward data.rankings={folder}")


def held(counts: dict[str, int]) -> str:
    """E.g. "3 rankings of 2 items (2 prompts) by 1 annotator, 1 demonstration"."""
    rankings, items, prompts = (plural(counts[name], name[:-1]) for name in ("rankings", "items", "prompts"))
    told = f"{rankings} of {items} ({prompts}) by {plural(counts['annotators'], 'annotator')}"
    return told + (f", {plural(counts['demonstrations'], 'demonstration')}" if counts["demonstrations"] else "")


def left_out(report: dict) -> list[str]:
    """E.g. "2 rankings left out: 1 not rankable, 1 paused annotator"."""
    kinds = {"ranking": report["excluded"], "demonstration": report["excluded_demonstrations"]}
    reasons = {kind: ", ".join(f"{count} {reason}" for reason, count in of.items()) for kind, of in kinds.items()}
    return [f"{plural(sum(kinds[kind].values()), kind)} left out: {why}" for kind, why in reasons.items() if why]

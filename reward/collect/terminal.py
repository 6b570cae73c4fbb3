"""The figures of a collection as tables in the terminal."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from reward.collect import comparison, quality
from rlhf.manifest import load_manifest

MEASURES = {
    "pair_agreement": ("pairs that two people order alike", "num_pairs"),
    "pair_agreement_with_ties": ("the same, ties included", "num_pairs"),
    "kendall_tau_b": ("Kendall tau-b", "num_twos"),
    "krippendorff_alpha": ("Krippendorff alpha, ordinal", None),
}


def print_stats(session: Session, name: str) -> None:
    """Progress, agreement and annotators."""
    console = Console(highlight=False)
    progress = quality.progress_report(session)
    items = ", ".join(f"{count} {state}" for state, count in sorted(progress["items"].items())) or "none"
    console.print(f"{name}: {progress['done_slots']} of {progress['all_slots']} rankings; items: {items}", markup=False)
    if progress["num_annotations"]:
        console.print(agreement_table(quality.agreement_report(session)))
        console.print(annotator_table(quality.annotator_report(session)["annotators"]))
        console.print("Figures are with their 95 % interval; what follows from them is for the lead to judge.")


def agreement_table(report: dict) -> Table:
    table = new_table("agreement", "value", "95 %", "of")
    for key, (what, number) in MEASURES.items():
        figure = report[key]
        table.add_row(
            what, value(figure), interval(figure), str(figure[number]) if number else figure["undefined"] or ""
        )
    return table


def annotator_table(rows: list[dict]) -> Table:
    table = new_table("annotator", "rankings", "on gold", "like others", "like before", "seconds", "to look at")
    for row in rows:
        figures = (value(row[key]) for key in ("gold", "agreement", "self_consistency"))
        name = row["annotator"] + (" (paused)" if row["status"] == "paused" else "")
        seconds = number(row["seconds"]["median"], "{:.0f}")
        table.add_row(name, str(row["num_rankings"]), *figures, seconds, "; ".join(map(str, row["reasons"])))
    return table


def print_comparisons(session: Session, name: str | None) -> None:
    """One comparison of policies, or all of them. Raises NotFound where there is none of the name."""
    for one in comparison.comparison_names(session) if name is None else [name]:
        print("\n".join(["", *comparison.lines(comparison.comparison_report(session, one))]))


def print_version(folder: Path) -> None:
    """What an export holds, what it left out and why, and what to do with it."""
    print(f"{folder}: {json.dumps(load_manifest(folder)['metrics'])}")
    print(f"train on it: python -m stages.reward data.rankings={folder}")


def new_table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def value(figure: dict) -> str:
    return number(figure["value"], "{:.3f}")


def interval(figure: dict) -> str:
    return f"{figure['low']:.3f} to {figure['high']:.3f}" if figure["low"] is not None else ""


def number(figure: float | None, shape: str) -> str:
    return "-" if figure is None else shape.format(figure)

"""Preference pairs in the shapes of TRL's RewardTrainer and DPOTrainer, explicit or implicit prompt.

https://huggingface.co/docs/trl/dataset_formats. TRL reads prompt, chosen, rejected and, where it is there, margin; the
other columns are for whoever filters, weighs or splits: keep the pairs of a prompt_id in one split. TRL takes every row
as won by `chosen`, so the tied pairs of ties=soft (p_chosen 0.5) are for trainers that read p_chosen.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from reward.collect.formats.canonical import item_id, meta_of, row_of
from reward.collect.formats.hh import transcript, why_no_transcript
from reward.collect.formats.pairs import Votes, pairs_of, why_no_pair
from reward.rankings import parse_ranking
from rlhf.data.dialogues import is_hh
from rlhf.data.records import Row, kind_of

STYLES = ("messages", "text")
KEPT = ("annotator", "prompt_id", "margin")


def to_explicit(rows: Iterable[dict], votes: Votes, strategy="all", ties="drop", style="messages") -> Iterator[dict]:
    """prompt, chosen, rejected. style=text: the prompt is a transcript up to "Assistant:", the answers what follows.

    votes: of all rows; p_chosen is from them. `rows` is gone through twice.
    """
    for pair, extra in _with_extras(rows, votes, strategy, ties):
        if style == "text":
            prompt = transcript(pair.row["prompt"]) + "\n\nAssistant:"
            answers = {side: f" {pair.text(side)}" for side in ("chosen", "rejected")}
        else:
            prompt, answers = pair.row["prompt"], {side: [_said(pair.text(side))] for side in ("chosen", "rejected")}
        yield {"prompt": prompt, **answers, **extra}


def why_not_explicit(row: dict, strategy="all", ties="drop", style="messages") -> str | None:
    return why_no_pair(row, strategy, ties) or (why_no_transcript(row) if style == "text" else None)


def to_implicit(rows: Iterable[dict], votes: Votes, strategy="all", ties="drop") -> Iterator[dict]:
    """chosen, rejected: each the whole dialogue."""
    for pair, extra in _with_extras(rows, votes, strategy, ties):
        dialogues = {side: [*pair.row["prompt"], _said(pair.text(side))] for side in ("chosen", "rejected")}
        yield {**dialogues, **extra}


def _said(text):
    return {"role": "assistant", "content": text}


def _with_extras(rows, votes, strategy, ties):
    """(pair, its columns beside the texts). margin only where every row has one: TRL looks at the first row alone."""
    has_margin = all("margin" in row for row in rows)
    for pair in pairs_of(rows, strategy, ties):
        yield (
            pair,
            {
                "prompt_id": pair.row.get("prompt_id"),
                "item_id": item_id(pair.row),
                "annotator": pair.row.get("annotator"),
                "rank_gap": pair.rank_gap,
                "pair_weight": pair.weight,
                "p_chosen": votes.share(pair),
                **({"margin": pair.row["margin"]} if has_margin else {}),
            },
        )


def parse(row: Row) -> list[dict]:
    """The canonical row of a pair in either shape, with what `rejoined` needs in its meta."""
    ranking = parse_ranking(_without_answer_space(row))
    canonical = row_of(ranking, row.values.get("group"), {**meta_of(row), **rejoining(row, row.values)}, KEPT)
    return [{**canonical, "ranks": [1, 1] if row.values.get("rank_gap") == 0 else canonical["ranks"]}]


def rejoining(row: Row, values: dict) -> dict:
    """item_id and rank_gap, where `values` has them."""
    item, gap = values.get("item_id"), values.get("rank_gap")
    if item is not None and not isinstance(item, str | int):
        raise row.error(f"field 'item_id' must be a name or a whole number, not {kind_of(item)}")
    if gap is not None and (isinstance(gap, bool) or not isinstance(gap, int) or gap < 0):
        raise row.error(f"field 'rank_gap' is {gap!r:.40}; it must be a whole number from 0, or left out")
    return {name: value for name, value in (("item_id", item), ("rank_gap", gap)) if value is not None}


def _without_answer_space(row):
    """Answers to a transcript prompt begin with the space after "Assistant:"."""
    prompt = row.values.get("prompt")
    if not isinstance(prompt, str) or not is_hh(prompt):
        return row
    sides = {name: row.values[name].removeprefix(" ") for name in ("chosen", "rejected") if _is_text(row, name)}
    return replace(row, values={**row.values, **sides})


def _is_text(row, name):
    return isinstance(row.values.get(name), str)

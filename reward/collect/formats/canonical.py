"""The canonical ranking row: what one person said of K answers to a prompt. Every other format is made from it.

prompt     [{role, content}, ...], ends with a user turn
responses  [K] strings
ranks      [K] competition ranks: 1 is best, equal is a tie (1, 2, 2, 4), null is not ranked
annotator, prompt_id, group, weight, margin    where known; as the reward stage reads them (reward/rankings.py)
meta       whatever else is known. Ours: item_id, annotation_id, revision, display_order and unacceptable (indices of
           responses), ratings {criterion: [K]}, comment, seconds, guidelines_version, item_meta, sources (per response)
"""

import json
from collections.abc import Iterable, Iterator

from reward.rankings import parse_ranking
from rlhf.data.records import Row, kind_of

NAMES = ("annotator", "prompt_id", "weight", "margin")


def competition(ranks: Iterable[int | None]) -> list[int | None]:
    """The same order with each rank one more than the number of answers above: [3, 1, 3, None] -> [2, 1, 2, None]."""
    ranks = list(ranks)
    given = [rank for rank in ranks if rank is not None]
    return [None if rank is None else 1 + sum(other < rank for other in given) for rank in ranks]


def row_of(ranking, group=None, meta: dict | None = None, given: Iterable[str] = NAMES) -> dict:
    """The canonical row of a reward.rankings.Ranking. given: which of NAMES to take over, where they are not None."""
    row = {
        "prompt": [dict(message) for message in ranking.messages],
        "responses": list(ranking.responses),
        "ranks": competition(ranking.ranks),
        **{name: getattr(ranking, name) for name in given},
        "group": group,
        "meta": meta or None,
    }
    return {name: value for name, value in row.items() if value is not None}


def parse(row: Row) -> list[dict]:
    """The canonical row of a record in any form that the reward stage reads, its ranks made competition ranks."""
    given = [name for name in NAMES if row.has(name)]
    return [row_of(parse_ranking(row), row.values.get("group"), meta_of(row), given)]


def meta_of(row: Row) -> dict:
    """The record's `meta`, or its `meta_json` where it comes from Parquet, whose columns have fixed types."""
    meta = json.loads(row.values["meta_json"]) if row.has("meta_json") else row.values.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise row.error(f"field 'meta' must be an object, not {kind_of(meta)}")
    return meta or {}


def unchanged(rows: Iterable[dict]) -> Iterator[dict]:
    return iter(rows)


def item_id(row: dict) -> str | None:
    return row.get("meta", {}).get("item_id")


def policies_of(row: dict, i: int) -> list:
    """What gave response i, where its sources name it."""
    sources = row.get("meta", {}).get("sources")
    return [source["policy"] for source in sources[i] if "policy" in source] if sources else []

"""Comparisons as OpenAI's summarize-from-feedback has them: two answers, and the index of the better one.

https://github.com/openai/summarize-from-feedback, comparisons/*.json:
{"info": {"id", "post", "title", "subreddit", "site", "article"}, "summaries": [{"text", "policy", "note"}, ...],
 "choice": 0 | 1, "worker", "batch", "split", "extra": {"confidence"}}
`post` is the prompt. In `extra` we also write item_id and rank_gap, so that a ranking can be put together again.
"""

from collections.abc import Iterable, Iterator

from reward.collect.formats.canonical import item_id, policies_of, row_of
from reward.collect.formats.hh import prompt_text, why_no_prompt_text
from reward.collect.formats.pairs import pairs_of, why_no_pair
from reward.collect.formats.trl import rejoining
from reward.collect.formats.values import ranking_of
from rlhf.data.dialogues import parse_hh
from rlhf.data.records import Row, kind_of


def to_openai(rows: Iterable[dict], strategy="all", batch="") -> Iterator[dict]:
    """batch: a name for where the comparisons come from."""
    for pair in pairs_of(rows, strategy):
        chosen_first = pair.chosen < pair.rejected  # as they stand in the row, not the better one always first
        indices = sorted((pair.chosen, pair.rejected))
        yield {
            "info": {
                "id": pair.row.get("prompt_id"),
                "post": prompt_text(pair.row["prompt"]),
                "title": None,
                "subreddit": None,
                "site": None,
                "article": None,
            },
            "summaries": [_summary(pair.row, i) for i in indices],
            "choice": 0 if chosen_first else 1,
            "worker": pair.row.get("annotator"),
            "batch": batch,
            "split": "train",
            "extra": {"confidence": None, "item_id": item_id(pair.row), "rank_gap": pair.rank_gap},
        }


def why_not_openai(row: dict, strategy="all", batch="") -> str | None:
    return why_no_pair(row, strategy) or why_no_prompt_text(row["prompt"])


def _summary(row: dict, i: int) -> dict:
    return {"text": row["responses"][i], "policy": next(iter(policies_of(row, i)), None), "note": None}


def parse(row: Row) -> list[dict]:
    """The canonical row of one comparison, the better answer first. The prompt is info.post, or else info.article."""
    texts, policies = _summaries(row)
    choice = row.values.get("choice")
    if type(choice) is not int or choice not in (0, 1):
        raise row.error(f"field 'choice' is {choice!r:.40}; it must be 0 or 1", "choice must be 0 or 1")
    order = [choice, 1 - choice]
    values = {
        "prompt": parse_hh(_post(row)),  # no other form of transcript: what only looks like one is a text
        "chosen": [{"role": "assistant", "content": texts[choice]}],
        "rejected": [{"role": "assistant", "content": texts[1 - choice]}],
        "annotator": row.values.get("worker"),
        "prompt_id": row.values["info"].get("id"),
    }
    meta = rejoining(row, row.values["extra"] if isinstance(row.values.get("extra"), dict) else {})
    if any(policies):
        meta["sources"] = [[{"policy": policies[i]}] if policies[i] else [] for i in order]
    return [row_of(ranking_of(row, values), None, meta, ("annotator", "prompt_id"))]


def _post(row):
    info = row.values.get("info")
    if not isinstance(info, dict):
        raise row.error(f"field 'info' must be an object, not {kind_of(info)}")
    post = info.get("post") or info.get("article")
    if not isinstance(post, str) or not post.strip():
        raise row.error("field 'info' must have a text 'post' or 'article'")
    return post


def _summaries(row):
    """(texts, policies) of the two answers."""
    summaries = row.values.get("summaries")
    if summaries is None and row.has("summary"):
        raise row.error("rates one summary (field 'summary'); only the comparisons of two can be read")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise row.error("field 'summaries' must be a list of two answers")
    if not all(isinstance(summary, dict) and isinstance(summary.get("text"), str) for summary in summaries):
        raise row.error("field 'summaries' must hold objects with a string 'text'")
    return [summary["text"] for summary in summaries], [summary.get("policy") for summary in summaries]

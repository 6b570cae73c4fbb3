"""Rankings from Argilla: the records of its server, as GET /api/v1/datasets/{id}/records?include=responses gives them.

A JSON array of them, or {"items": [...]}, or one a line in a .jsonl file:
{"id": ..., "fields": {"prompt": "...", "reply-1": "...", "reply-2": "..."},
 "responses": [{"user_id": "...", "status": "submitted",
                "values": {"order": {"value": [{"value": "reply-2", "rank": 1}, {"value": "reply-1", "rank": 2}]}}}]}
The prompt is the field `prompt`, or else `instruction`. The options of the ranking question (here `order`) are named
like the fields that hold the answers. Drafts and discarded responses are left out.

What the Python SDK 2 writes (`dataset.records.to_json`) lists option names without ranks, in the order of the question
and not in the person's: https://github.com/argilla-io/argilla/issues/5712. That is refused, since it holds no ranking.
"""

from collections.abc import Iterator

from reward.collect.formats.canonical import row_of
from reward.collect.formats.values import ranking_of
from rlhf.data.records import Row, kind_of, shown

PROMPT_FIELDS = ("prompt", "instruction")


def parse(row: Row) -> list[dict]:
    """A canonical row for each submitted ranking of a record; all options that a ranking leaves out are not ranked."""
    fields = row.values.get("fields")
    if not isinstance(fields, dict):
        raise row.error(f"field 'fields' must be an object, not {kind_of(fields)}; export the server's records")
    prompt = next((fields[name] for name in PROMPT_FIELDS if fields.get(name)), None)
    if prompt is None:
        raise row.error(f"field 'fields' has no {' or '.join(PROMPT_FIELDS)} (found: {shown(fields)})")
    return [_ranking(row, prompt, fields, user, value) for user, value in _submitted(row)]


def _submitted(row: Row) -> Iterator[tuple[str | None, list[dict]]]:
    """(user, [{value, rank}]) of each submitted answer to a ranking question."""
    responses = row.values.get("responses") or []
    if not isinstance(responses, list):
        raise row.error(
            "field 'responses' is of the form that Argilla's SDK 2 writes, which loses the ranks; "
            "export the server's records (GET /api/v1/datasets/ID/records?include=responses)"
        )
    for i, response in enumerate(responses):
        if not isinstance(response, dict) or not isinstance(response.get("values") or {}, dict):
            raise row.error(f"field 'responses[{i}]' must be an object with 'values'")
        if response.get("status", "submitted") == "submitted":
            answers = (response.get("values") or {}).values()
            values = [answer.get("value") for answer in answers if isinstance(answer, dict)]
            yield from ((response.get("user_id"), value) for value in values if _is_ranking(value))


def _is_ranking(value):
    """Whether it answers a ranking question: other questions have texts, numbers or lists of labels."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "value" in one for one in value)


def _ranking(row, prompt, fields, user, value):
    if not all(isinstance(one.get("value"), str) for one in value):
        raise row.error("field 'responses' names an option that is not a string")
    ranks = {one["value"]: one.get("rank") for one in value}
    if unknown := [name for name in ranks if name not in fields]:
        rule = "name the options of the question like the fields that hold the answers"
        raise row.error(f"option '{shown(unknown)}' is not among the fields ({shown(fields)}); {rule}", rule)
    if len(ranks) < len(value):
        raise row.error(f"field 'responses' ranks an option twice ({shown(one['value'] for one in value)})")
    values = {
        "prompt": prompt,
        "responses": [fields[name] for name in ranks],
        "ranks": list(ranks.values()),
        "annotator": user,
        "prompt_id": row.values.get("id"),
    }
    return row_of(ranking_of(row, values), None, None, ("annotator", "prompt_id"))

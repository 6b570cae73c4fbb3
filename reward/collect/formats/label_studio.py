"""Rankings from Label Studio: its JSON export of tasks with a List and a Ranker, https://labelstud.io/tags/ranker.

A JSON array of tasks (Export > JSON), or one a line in a .jsonl file:
{"id": 1, "data": {"prompt": "...", "items": [{"id": "a", "title": "...", "body": "..."}, {"id": "b", ...}]},
 "annotations": [{"completed_by": 3, "was_cancelled": false, "lead_time": 12.5,
                  "result": [{"type": "ranker", "value": {"ranker": {"rank": ["b", "a"]}}}]}]}
`ranker` may be the list of ids itself, best first, or an object with one list: the best first, those under "_" not
ranked. With several buckets it says what an answer is, not which is better, and is refused. The answers are the `body`
of the only list of {id, body} in `data`; the prompt is `prompt`, `question` or `text`.
"""

from collections.abc import Iterator

from reward.collect.formats.canonical import row_of
from reward.collect.formats.values import ranking_of
from rlhf.data.records import Row, kind_of, shown

PROMPT_FIELDS = ("prompt", "question", "text")
NOT_RANKED = "_"


def parse(row: Row) -> list[dict]:
    """A canonical row for each annotation of a task that ranks its answers. Cancelled annotations are left out."""
    data = row.values.get("data")
    if not isinstance(data, dict):
        raise row.error(f"field 'data' must be an object, not {kind_of(data)}; choose the export format JSON")
    prompt = next((data[name] for name in PROMPT_FIELDS if data.get(name)), None)
    if prompt is None:
        raise row.error(f"field 'data' has no {', '.join(PROMPT_FIELDS)} (found: {shown(data)})")
    answers = _answers(row, data)
    return [_ranking(row, prompt, answers, annotation, order) for annotation, order in _orders(row)]


def _answers(row, data) -> dict[str, str]:
    """id -> text of what was ranked."""
    lists = {name: value for name, value in data.items() if isinstance(value, list) and value and _is_items(value)}
    if len(lists) != 1:
        raise row.error(f"field 'data' must have one list of {{id, body}}, has {len(lists)} (found: {shown(data)})")
    items = next(iter(lists.values()))
    answers = {str(item["id"]): item["body"] for item in items}
    if len(answers) < len(items):
        raise row.error(f"two answers have the same id ({shown(item['id'] for item in items)})")
    return answers


def _is_items(value):
    return all(isinstance(item, dict) and {"id", "body"} <= item.keys() for item in value)


def _orders(row: Row) -> Iterator[tuple[dict, list[str]]]:
    """(annotation, ids best first) of each annotation with a ranker's result."""
    annotations = row.values.get("annotations") or []
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise row.error("field 'annotations' must be a list of objects; choose the export format JSON")
    for annotation in annotations:
        results = [] if annotation.get("was_cancelled") else annotation.get("result") or []
        if not isinstance(results, list):
            raise row.error(f"field 'annotations' has a result that is {kind_of(results)}, not a list")
        for result in results:
            if isinstance(result, dict) and result.get("type") == "ranker":
                yield annotation, _order(row, result.get("value"))


def _order(row, value):
    ranker = value.get("ranker") if isinstance(value, dict) else None
    buckets = ranker if isinstance(ranker, dict) else {"rank": ranker}
    ordered = [ids for name, ids in buckets.items() if name != NOT_RANKED and ids]
    if len(ordered) > 1:
        rule = "a ranking is one list; of several buckets nobody said which is better"
        raise row.error(f"the ranker has {len(ordered)} buckets ({shown(buckets)}); {rule}", rule)
    if not ordered or not isinstance(ordered[0], list):
        raise row.error("the ranker's value must be a list of ids, or an object with one list of ids")
    return [str(one) for one in ordered[0]]


def _ranking(row, prompt, answers, annotation, order):
    if unknown := [one for one in order if one not in answers]:
        raise row.error(f"ranks {shown(unknown)}, which is not among the answers ({shown(answers)})")
    if len(set(order)) < len(order):
        raise row.error(f"ranks an answer twice ({shown(order)})")
    person = annotation.get("completed_by")
    values = {
        "prompt": prompt,
        "responses": list(answers.values()),
        "ranks": [order.index(one) + 1 if one in order else None for one in answers],
        "annotator": person.get("id") if isinstance(person, dict) else person,  # never the e-mail address beside it
        "prompt_id": row.values.get("id"),
    }
    seconds = annotation.get("lead_time")
    meta = {} if seconds is None else {"seconds": seconds}
    return row_of(ranking_of(row, values), None, meta, ("annotator", "prompt_id"))

"""Sets with a row for each answer: the answers of a prompt, wherever they stand in the file, are one ranking.

rows       {"prompt": "...", "response": "...", "score": 3.5} or "rank" for "score"; optional "annotator", "prompt_id":
           rankings are by prompt and annotator. The columns may have other names: --field score=stars
helpsteer  {"prompt": "...", "response": "...", "helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 2,
            "verbosity": 1}    HelpSteer and HelpSteer2; option attribute says which
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator

from reward.collect.formats.canonical import row_of
from reward.collect.formats.values import at, helpsteer_prompt, ranking_of
from rlhf.data.records import RecordError, Row
from rlhf.errors import UserError

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
SHARED = ("prompt", "annotator", "prompt_id")  # what the rows of one ranking have in common


def parse_rows(row: Row) -> list[dict]:
    names = [name for name in ("score", "rank") if row.has(name)]
    if len(names) != 1:
        raise row.error("a row must have a 'score' (higher is better) or a 'rank' (1 = best), and not both")
    order = at(row, names[0])
    shared = {name: row.values.get(name) for name in SHARED}
    return [
        {**shared, "prompt": at(row, "prompt"), "response": row.text("response"), f"{names[0]}s": order, "row": row}
    ]


def parse_helpsteer(row: Row, attribute: str) -> list[dict]:
    values = {"prompt": helpsteer_prompt(row), "response": row.text("response"), "scores": at(row, attribute)}
    return [{**values, "row": row}]


def grouped(answers: Iterable[dict], tell) -> Iterator[dict]:
    """The canonical rows of all answers of a file, in the order of the prompts' first rows."""
    together = defaultdict(list)
    for answer in answers:
        together[json.dumps([answer.get(name) for name in SHARED])].append(answer)
    for group in together.values():
        try:
            yield _ranking(group)
        except UserError as error:
            tell(error)


def _ranking(group):
    first = group[0]
    if len(group) < 2:
        rule = "the only answer to its prompt; a ranking needs 2 or more"
        raise RecordError(first["row"].where, rule)
    order = "scores" if "scores" in first else "ranks"
    if any(order not in answer for answer in group):
        raise first["row"].error("the rows of this prompt have scores and ranks; give one of the two")
    values = {name: first[name] for name in SHARED if first.get(name) is not None}
    values |= {
        "responses": [answer["response"] for answer in group],
        order: [_number(answer[order]) for answer in group],
    }
    return row_of(ranking_of(first["row"], values), given=SHARED[1:])


def _number(value):
    """Cells of a table are texts; `ranks` are read as numbers only."""
    return int(value) if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() else value

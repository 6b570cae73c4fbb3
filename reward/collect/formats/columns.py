"""Records of one's own with a column for each answer. Options name the columns; the prompt is `prompt` (or --field).

responses  the columns of the answers, e.g. responses=answer_a,answer_b
scores     the columns of their scores (higher is better), in the same order; or
ranks      of their ranks (1 = best); or
best       one column that says which is best: in the words of `words`, in the order of the answers, or `tie`
words      e.g. words=A,B; without it, the names of the answers' columns
"""

from reward.collect.formats.canonical import NAMES, row_of
from reward.collect.formats.two_answers import by_label
from reward.collect.formats.values import at, ranking_of
from reward.collect.refusals import Refusal
from reward.ranks import score
from rlhf.data.records import Row

ORDERS = ("scores", "ranks", "best")
OPTIONS = ("responses", *ORDERS, "words")


def check(options: dict[str, str]) -> None:
    """Raises Refusal for options that do not say where the answers and their order are."""
    if "responses" not in options or len(set(options) & set(ORDERS)) != 1:
        raise Refusal(
            "format 'columns' needs --option responses=COLUMN,COLUMN and one of --option scores=COLUMN,COLUMN "
            "(higher is better), ranks=COLUMN,COLUMN (1 = best) or best=COLUMN",
            {"responses": "missing"},
        )
    number = len(_names(options["responses"]))
    for option in set(options) & {"scores", "ranks", "words"}:
        if len(_names(options[option])) != number:
            raise Refusal(
                f"{option}={options[option]} must name as many as responses: {number}", {option: "other number"}
            )


def parse(row: Row, **options: str) -> list[dict]:
    """An answer whose cell is empty is not there."""
    columns = _names(options["responses"])
    filled = [i for i, name in enumerate(columns) if row.has(name)]
    order = next(name for name in ORDERS if name in options)
    values = {name: row.values.get(name) for name in ("prompt", "messages", *NAMES)}
    values["responses"] = [row.text(columns[i]) for i in filled]
    if order == "best":
        words = _names(options.get("words", options["responses"]))
        values["ranks"] = list(by_label(options["best"], _meanings([words[i] for i in filled]))(row))
    else:
        values[order] = [_number(row, _names(options[order])[i]) for i in filled]
    given = [name for name in NAMES if row.has(name)]
    return [row_of(ranking_of(row, values), row.values.get("group"), None, given)]


def _names(text):
    return tuple(name.strip() for name in text.split(","))


def _number(row, name):
    return score(row, name, at(row, name)) if row.has(name) else None


def _meanings(words):
    """What says which of the answers is best -> ranks: the best first, the others tied."""
    best = {word: tuple(1 if other == word else 2 for other in words) for word in words}
    return {**best, "tie": (1,) * len(words)}

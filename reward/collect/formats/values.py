"""Values out of the records of public sets."""

import re
from dataclasses import replace
from typing import Any

from reward.rankings import Ranking, parse_ranking
from rlhf.data.records import Row, shown

HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
HELPSTEER_ROLES = {"User": "user", "Assistant": "assistant"}


def at(row: Row, path: str) -> Any:
    """The value of a column, or by dots inside one. Raises RecordError where there is none."""
    name, _, inside = path.partition(".")
    if not row.has(name):
        raise row.missing(name)
    value = row.values[name]
    for step in inside.split(".") if inside else ():
        if not isinstance(value, dict) or value.get(step) is None:
            found = shown(value) if isinstance(value, dict) else f"{value!r:.40}"
            raise row.error(f"field '{name}' has no '{step}' (found: {found})", f"field '{name}' has no '{step}'")
        value = value[step]
    return value


def word(value: Any) -> str:
    """A label as a word: 1, 1.0 and "1" are the same; true and false are none of these."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def ranking_of(row: Row, values: dict) -> Ranking:
    """What our own fields in `values` hold, named in errors as the place of `row`."""
    return parse_ranking(replace(row, values={name: value for name, value in values.items() if value is not None}))


def helpsteer_prompt(row: Row) -> str | list[dict]:
    """The prompt of HelpSteer: a text, or turns with "<extra_id_1>User" and "<extra_id_1>Assistant" between them."""
    first, *rest = HELPSTEER_TURN.split(row.text("prompt"))
    if not rest:
        return first
    turns = zip(("User", *rest[::2]), (first, *rest[1::2]), strict=True)
    return [{"role": HELPSTEER_ROLES[who], "content": said} for who, said in turns]

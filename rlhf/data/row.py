"""One record: checked values with the place they came from, so that every error can name it and say what to do."""

import re
from dataclasses import dataclass, field, replace

from rlhf.data.decoding import RecordError, kind_of, shown

_PLAIN_NAME = re.compile(r"\w+")
# Names that a missing field may have; a remedy offers the one that is there.
LIKELY = {
    "prompt": ("instruction", "question", "query", "input", "problem"),
    "completion": ("answer", "response", "output", "reply", "solution", "target", "chosen"),
    "messages": ("conversations", "dialogue", "dialog", "chat"),
    "responses": ("answers", "completions", "candidates", "outputs"),
}


@dataclass(frozen=True, slots=True)
class Row:
    values: dict
    where: str  # "file:line", or "file[row]" where there are no lines
    notes: list[str] = field(default_factory=list, compare=False)  # what was read as what, for the data report
    taken: set[str] = field(default_factory=set, compare=False)  # columns that were read as a field of ours

    def has(self, name: str) -> bool:
        """True when the field is there and not null."""
        return self.values.get(name) is not None

    def text(self, name: str) -> str:
        """A field that must be a string with something in it."""
        value = self.values.get(name)
        if value is None:
            raise self.missing(name)
        if not isinstance(value, str):
            raise self.error(f"field '{name}' must be a string, not {kind_of(value)}")
        if not value.strip():
            raise self.error(f"field '{name}' is empty")
        return value

    def name(self, name: str) -> str | None:
        """A field that names something, maybe by a whole number; None where it is not there, or is an empty string."""
        value = whole(self.values.get(name))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            rule = f"field '{name}' must be a name or a whole number"
            given = value if isinstance(value, float) else kind_of(value)
            raise self.error(f"{rule}, not {given}. {self.if_foreign(name)}", rule)
        return str(value) if str(value).strip() else None

    def error(self, message: str, rule: str | None = None) -> RecordError:
        return RecordError(self.where, message, rule)

    def without(self, *names: str) -> "Row":
        """The row less these fields."""
        return replace(self, values={name: value for name, value in self.values.items() if name not in names})

    def missing(self, name: str, needed: str = "") -> RecordError:
        """needed: what a record of the kind must have, where it has none of it."""
        if name in self.values:
            return self.error(f"field '{name}' is null")
        theirs = likely_name(name, self.values) or "<your name for it>"
        rule = f"field '{name}' is missing"
        found = f"(found: {shown(self.values)})" + (f"; {needed}" if needed else "")
        remedy = if_wrapped(self.values) or f"Map it with {self.mapping(name, theirs)}"
        return self.error(f"{rule} {found}. {remedy}", rule)

    def mapping(self, ours: str, theirs: str | None) -> str:
        """What to write so that `theirs` is read as our field; None: so that a column of our name is not read."""
        if theirs is None or _PLAIN_NAME.fullmatch(theirs) or theirs.startswith("<"):
            return f"+data.fields.{ours}={theirs or 'null'}"
        return f"\"+data.fields.{ours}='{shown([theirs])}'\""

    def if_foreign(self, name: str) -> str:
        """The remedy where a column only has the name of a field of ours."""
        return f"If it is something else, leave it out with {self.mapping(name, None)}"

    def note(self, what: str) -> None:
        """Says in the data report what was read as what, or left aside."""
        self.notes.append(what)


def is_filled(value) -> bool:
    """Whether there is anything in a field."""
    return value is not None and value != "" and value != [] and value != {}


def likely_name(ours: str, values: dict) -> str | None:
    """The one column that may well be a field that is missing: by its name but for its case, or by a likely one."""
    same = [name for name in values if name != ours and name.strip().casefold() == ours]
    known = same or [name for name in LIKELY.get(ours, ()) if is_filled(values.get(name))]
    return known[0] if len(known) == 1 else None


def if_wrapped(values: dict) -> str:
    """The remedy where what was read as one record is an object with a list of all records in it; "" for any other."""
    records = next(iter(values.values())) if len(values) == 1 else None
    is_list = isinstance(records, list) and records and all(isinstance(one, dict) for one in records)
    if not is_list or {"role", "from"} & records[0].keys():
        return ""
    return "If the records are the list in it, write them one a line: jq -c '.[][]' FILE"


def whole(value):
    """A whole number that a table gave as a float, e.g. 3.0, as an int; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value

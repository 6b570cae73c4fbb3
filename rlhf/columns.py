"""Which of a record's columns are which of our fields: by data.fields, or by a name that many public data sets have.

Nothing is guessed: two columns that could both be one field are an error, and the data report says what was read.
"""

from dataclasses import dataclass, field, replace

from rlhf.data_files import Cells
from rlhf.decoding import RecordError, decode_json
from rlhf.errors import UserError

DIALOGUE = ("prompt", "messages", "system", "history", "group")
PAIR = ("chosen", "rejected")
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
# What each kind of record is read from. Fields of prompts that are not among these are for reward rules.
READ = {
    "demonstrations": (*DIALOGUE, "completion", "text"),
    "theirs": (),  # records of another shape, which an import reads by their own names
    "prompts": (*DIALOGUE, "meta"),
    "heldout": (*DIALOGUE, "meta"),
    "rankings": (*DIALOGUE, *PAIR, "responses", "ranks", "scores", "margin", "annotator", "weight", "prompt_id"),
}
READ["rankings"] += tuple(name for names in PAIR_SCORES for name in names)
FIELDS = (*dict.fromkeys(name for names in READ.values() for name in names), "input", "response", "id", "meta")

# Names that are read as ours where there is no column of ours. The first is as good as ours and needs no note.
COMMON = {
    "prompt": ("instruction",),
    "completion": ("response", "output"),
    "messages": ("conversations", "conversation"),
    "system": ("system_prompt",),
}
COMMON_NAMES = {name for names in COMMON.values() for name in names}
INPUTS = ("input", "context")  # of an instruction: what it is about, as in Alpaca and Dolly
# Names that a missing field may have; a remedy offers the one that is there.
LIKELY = {
    "prompt": ("instruction", "question", "query", "input", "problem"),
    "completion": ("answer", "response", "output", "reply", "solution", "target", "chosen"),
    "messages": ("conversations", "dialogue", "dialog", "chat"),
    "responses": ("answers", "completions", "candidates", "outputs"),
}
JSON_FIELDS = ("messages", "history", "responses", "ranks", "scores", "margin", "weight", "meta")  # in a table of texts

Fields = dict[str, str | None]  # of ours -> their name, or None where a column is not to be read


def check_fields(fields: Fields, key: str = "data.fields") -> None:
    for ours, theirs in fields.items():
        if theirs is not None and ours not in FIELDS:
            raise UserError(f"{key}.{ours}: '{ours}' is not a field of ours; map one of {', '.join(FIELDS)}")


@dataclass(frozen=True, slots=True)
class Ours:
    """A record under our names: its values (also under their names), what was read as what, which names that took."""

    values: dict
    notes: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)


def as_ours(raw: dict, where: str, kind: str, fields: Fields) -> Ours:
    """A record of a kind that is in READ. A source in a mixture that has not the name of a mapping keeps its own."""
    ours = Ours(raw)
    if fields or not COMMON_NAMES.isdisjoint(raw):
        ours = Ours(_mapped(raw, fields), taken={name for name in fields.values() if name is not None})
        for name in COMMON:
            is_mapped = name in fields and fields[name] in (None, *raw)
            if name in READ.get(kind, ()) and not is_mapped:
                _take_common(ours, name, where)
        _add_input(ours, fields)
    return replace(ours, values=_with_json(ours.values, _json_fields(kind), where)) if isinstance(raw, Cells) else ours


def _mapped(values, fields):
    """Without what is mapped to null. A column that has another of our names stays under that no longer."""
    theirs = set(fields.values())
    dropped = {name for name in values if fields.get(name, name) is None or (name in theirs and name in FIELDS)}
    kept = {name: value for name, value in values.items() if name not in dropped}
    return {**kept, **{ours: values[name] for ours, name in fields.items() if name in values}}


def _take_common(ours, name, where):
    """Fills a field from a column with a common name for it. Raises RecordError where two columns differ."""
    free = [one for one in COMMON[name] if one not in ours.taken and is_filled(ours.values.get(one))]
    if not free:
        return
    columns = [name, *free] if is_filled(ours.values.get(name)) else free
    if any(ours.values[one] != ours.values[columns[0]] for one in columns):
        rule = f"{' and '.join(map(repr, columns))} could both be field '{name}'"
        remedy = f"Leave one out, e.g. +data.fields.{columns[-1]}=null"
        raise RecordError(where, f"{rule}. {remedy}", rule)
    ours.taken.update(free)
    if columns[0] != name:
        ours.values[name] = ours.values[columns[0]]
        if columns[0] != "response":
            ours.notes.append(f"column '{columns[0]}' read as '{name}'")


def _add_input(ours, fields):
    """Puts what an instruction is about below it: `input`, or whatever is mapped to it."""
    is_instruction = "instruction" in ours.taken and ours.values.get("prompt") == ours.values.get("instruction")
    names = ("input",) if "input" in fields else INPUTS if is_instruction else ()
    name = next((one for one in names if is_filled(ours.values.get(one))), None)
    prompt = ours.values.get("prompt")
    if name and isinstance(prompt, str) and isinstance(ours.values[name], str):
        ours.values["prompt"] = f"{prompt}\n\n{ours.values[name]}"
        ours.taken.add(name)
        ours.notes.append(f"column '{fields.get(name) or name}' read as the end of the prompt")


def _json_fields(kind):
    return [name for name in JSON_FIELDS if name in READ.get(kind, JSON_FIELDS)]


def _with_json(values, names, where):
    """Cells of a table, which are texts, as what they must be: those of these names are JSON."""
    written = {name: values[name] for name in names if isinstance(values.get(name), str)}
    return {**values, **{name: _json_cell(name, text, where) for name, text in written.items()}}


def _json_cell(name, text, where):
    try:
        return decode_json(text)
    except (ValueError, RecursionError):
        rule = "in a table, what is no text is written as JSON, e.g. [1, 2]"
        raise RecordError(where, f"field '{name}' is {text!r:.40}; {rule}", rule) from None


def is_filled(value) -> bool:
    """Whether there is anything in a field."""
    return value is not None and value != "" and value != [] and value != {}


def not_used(ours: Ours, kind: str) -> list[str]:
    """The names of columns that hold something and that nothing reads."""
    if kind not in READ or not (rest := ours.values.keys() - READ[kind] - ours.taken):
        return []
    return [name for name in ours.values if name in rest and is_filled(ours.values[name])]


def likely_name(ours: str, values: dict) -> str | None:
    """The one column that may well be a field that is missing: by its name but for its case, or by a likely one."""
    same = [name for name in values if name != ours and name.strip().casefold() == ours]
    known = same or [name for name in LIKELY.get(ours, ()) if is_filled(values.get(name))]
    return known[0] if len(known) == 1 else None

"""Which of a record's columns are which of our fields: by data.fields, or by a name that many public data sets have.

Nothing is guessed: two columns that could both be one field are an error, and the data report says what was read.
"""

from dataclasses import replace

from rlhf.data.decoding import decode_json
from rlhf.data.row import Row, is_filled
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
JSON_FIELDS = ("messages", "history", "responses", "ranks", "scores", "margin", "weight", "meta")  # in a table of texts

Fields = dict[str, str | None]  # of ours -> their name, or None where a column is not to be read


def check_fields(fields: Fields, key: str = "data.fields") -> None:
    for ours, theirs in fields.items():
        if theirs is not None and ours not in FIELDS:
            raise UserError(f"{key}.{ours}: '{ours}' is not a field of ours; map one of {', '.join(FIELDS)}")


def as_ours(row: Row, kind: str, fields: Fields, is_table: bool = False) -> Row:
    """The row under our names (and under its own). A source in a mixture keeps names that a mapping does not have.

    kind: one that is in READ. is_table: what is not text in it is written as JSON.
    """
    raw = row.values
    if fields or not COMMON_NAMES.isdisjoint(raw):
        taken = {name for name in fields.values() if name is not None}
        row = replace(row, values=_mapped(raw, fields), taken=taken)
        for name in COMMON:
            is_mapped = name in fields and fields[name] in (None, *raw)
            if name in READ.get(kind, ()) and not is_mapped:
                _take_common(row, name)
        _add_input(row, fields)
    return _with_json(row, kind) if is_table else row


def _mapped(values, fields):
    """Without what is mapped to null. A column that has another of our names stays under that no longer."""
    theirs = set(fields.values())
    dropped = {name for name in values if fields.get(name, name) is None or (name in theirs and name in FIELDS)}
    kept = {name: value for name, value in values.items() if name not in dropped}
    return {**kept, **{ours: values[name] for ours, name in fields.items() if name in values}}


def _take_common(row, name):
    """Fills a field from a column with a common name for it. Raises RecordError where two columns differ."""
    free = [one for one in COMMON[name] if one not in row.taken and is_filled(row.values.get(one))]
    if not free:
        return
    columns = [name, *free] if is_filled(row.values.get(name)) else free
    if any(row.values[one] != row.values[columns[0]] for one in columns):
        rule = f"{' and '.join(map(repr, columns))} could both be field '{name}'"
        raise row.error(f"{rule}. Leave one out, e.g. {row.mapping(columns[-1], None)}", rule)
    row.taken.update(free)
    if columns[0] != name:
        row.values[name] = row.values[columns[0]]
        if columns[0] != "response":
            row.note(f"column '{columns[0]}' read as '{name}'")


def _add_input(row, fields):
    """Puts what an instruction is about below it: `input`, or whatever is mapped to it."""
    is_instruction = "instruction" in row.taken and row.values.get("prompt") == row.values.get("instruction")
    names = ("input",) if "input" in fields else INPUTS if is_instruction else ()
    name = next((one for one in names if is_filled(row.values.get(one))), None)
    prompt = row.values.get("prompt")
    if name and isinstance(prompt, str) and isinstance(row.values[name], str):
        row.values["prompt"] = f"{prompt}\n\n{row.values[name]}"
        row.taken.add(name)
        row.note(f"column '{fields.get(name) or name}' read as the end of the prompt")


def _with_json(row, kind):
    """Of a table, whose cells are texts, those that must be something else."""
    names = [name for name in JSON_FIELDS if name in READ.get(kind, JSON_FIELDS)]
    written = {name: _json_cell(row, name) for name in names if isinstance(row.values.get(name), str)}
    return replace(row, values={**row.values, **written})


def _json_cell(row, name):
    try:
        return decode_json(row.values[name])
    except (ValueError, RecursionError):
        rule = "in a table, what is no text is written as JSON, e.g. [1, 2]"
        raise row.error(f"field '{name}' is {row.values[name]!r:.40}; {rule}. {row.if_foreign(name)}", rule) from None


def not_used(row: Row, kind: str) -> list[str]:
    """The names of columns that hold something and that nothing reads."""
    if kind not in READ or not (rest := row.values.keys() - READ[kind] - row.taken):
        return []
    return [name for name in row.values if name in rest and is_filled(row.values[name])]

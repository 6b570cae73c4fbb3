"""What to tell about a record that is no ranking: which fields are needed, and how its own could be read as them."""

from rlhf.data.records import RecordError, Row, shown
from rlhf.data.row import if_wrapped

NEEDED = (
    "a ranking needs 'prompt' and 'responses' with 'ranks' (1 = best) or 'scores' (higher is better), "
    "or 'chosen' and 'rejected'"
)
# Public shapes that the import command reads, in the order tried: its name for them, and columns that tell them apart.
PUBLIC_SHAPES = {
    "shp": ("history", "human_ref_A", "human_ref_B", "labels"),
    "webgpt": ("question", "answer_0", "answer_1", "score_0", "score_1"),
    "pku": ("prompt", "response_0", "response_1", "better_response_id"),
    "arena": ("conversation_a", "conversation_b", "winner"),
    "helpsteer_pairs": ("prompt", "response_1", "response_2", "preference_strength"),
    "helpsteer3": ("context", "response1", "response2", "overall_preference"),
    "helpsteer": ("prompt", "response", "helpfulness"),
    "ultrafeedback": ("instruction", "completions"),
    "nectar": ("prompt", "answers", "num_responses"),
    "stack_answers": ("question", "answers", "qid"),
    "stack_paired": ("question", "response_j", "response_k"),
    "alpaca_farm": ("instruction", "output_1", "output_2", "preference"),
    "oasst": ("message_tree_id",),
    "openai": ("info", "summaries", "choice"),
}


def not_a_ranking(row: Row) -> RecordError:
    """The error for a record that has none of the fields of a ranking."""
    rule = f"no ranking: {NEEDED}"
    return row.error(f"{rule} (found: {shown(row.values) or 'nothing'}). {_remedy(row)}", rule)


def no_order(row: Row) -> RecordError:
    """The error for a record with answers and no order of them. Scores offered as ranks would be read upside down."""
    if "ranks" in row.values:
        return row.missing("ranks")
    numbers = [name for name, value in row.values.items() if _is_list_of(value, int | float)]
    theirs = numbers[0] if len(numbers) == 1 else "<their name>"
    rule = "field 'ranks' is missing, and so is 'scores'"
    return row.error(
        f"{rule} (found: {shown(row.values)}). Map the order with {row.mapping('scores', theirs)} where higher is "
        f"better, with {row.mapping('ranks', theirs)} where 1 is best",
        rule,
    )


def _remedy(row):
    shape = next((name for name, columns in PUBLIC_SHAPES.items() if set(columns) <= set(row.values)), None)
    if shape:
        return f"It has the columns of '{shape}': python -m reward.collect import --rankings {shape} FILE --to OUT"
    if remedy := if_wrapped(row.values):
        return remedy
    if isinstance(row.values.get("label"), bool):
        return "One answer with a label of good or bad (KTO) ranks nothing; give two answers or more to each prompt"
    if mapping := _mapping(row):
        return f"Map yours with {mapping}"
    return "Map yours with data.fields, or see docs/rankings.md for what else is read"


def _mapping(row):
    """How columns that are named or filled like ours could be mapped; None without a good guess."""
    pair = [[name for name in row.values if ours in name] for ours in ("chosen", "rejected")]
    texts = [name for name, value in row.values.items() if _is_list_of(value, str)]
    if all(len(names) == 1 for names in pair):
        return " ".join(row.mapping(ours, names[0]) for ours, names in zip(("chosen", "rejected"), pair, strict=True))
    if len(texts) == 1:
        return f"{row.mapping('responses', texts[0])} and, for their order, ranks or scores"
    return None


def _is_list_of(value, kind):
    return isinstance(value, list) and len(value) > 1 and all(isinstance(one, kind) for one in value)

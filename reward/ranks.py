"""The ranks of a record's K answers, given as `ranks` (1 = best) or as `scores` (higher is better).

The two run in opposite directions, and scores taken for ranks train a reward model upside down. So ranks must look
like ranks: whole numbers from 1 to K, and some answer has rank 1.
"""

import math
import re

from reward.ranking_hints import no_order
from rlhf.data.records import Row, kind_of

NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
NOT_A_RANK = "a rank must be a whole number from 1 (the best) to the number of answers, or null for not ranked"
NO_BEST = "no answer has rank 1, the best"
READ_AS_RANKS = "scores read as ranks: higher is better"
TIES_BY_SCORE = "equal scores kept as ties"

Ranks = tuple[int | None, ...]


def parse_ranks(row: Row, num_responses: int) -> Ranks:
    """The ranks of the row's answers. With both `ranks` and `scores`, the ranks, which must agree with them."""
    if not row.has("scores"):
        return given_ranks(row, num_responses)
    scores = given_scores(row, num_responses)
    if row.has("ranks"):
        ranks = given_ranks(row, num_responses)
        _refuse_opposite(row, ranks, scores)
        return ranks
    ranks = ranks_by_score(scores)
    row.note(READ_AS_RANKS)
    if has_ties(ranks):
        row.note(TIES_BY_SCORE)
    return ranks


def ranks_by_score(scores) -> Ranks:
    """Competition ranks, the highest score first: [9, 2, 9, None] -> (1, 3, 1, None)."""
    known = [score for score in scores if score is not None]
    return tuple(None if score is None else 1 + sum(other > score for other in known) for score in scores)


def has_ties(ranks: Ranks) -> bool:
    known = [rank for rank in ranks if rank is not None]
    return len(set(known)) < len(known)


def given_ranks(row: Row, num_responses: int) -> Ranks:
    values = _listed(row, "ranks", num_responses)
    for i, value in enumerate(values):
        if value is not None and not _is_rank(value, num_responses):
            raise row.error(f"field 'ranks[{i}]' is {value!r:.40}; {NOT_A_RANK}. {scores_remedy(row)}", NOT_A_RANK)
    if 1 not in values:
        raise row.error(f"field 'ranks' is {shortened(values)}: {NO_BEST}. {scores_remedy(row)}", NO_BEST)
    return tuple(None if value is None else int(value) for value in values)


def scores_remedy(row: Row) -> str:
    return f"Where higher is better these are scores: {row.mapping('scores', '<their name>')}"


def _is_rank(value, num_responses):
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return is_whole and 1 <= value <= num_responses


def given_scores(row: Row, num_responses: int) -> tuple[float | None, ...]:
    values = _listed(row, "scores", num_responses)
    return tuple(None if value is None else score(row, f"scores[{i}]", value) for i, value in enumerate(values))


def score(row: Row, name: str, value) -> float:
    """A number, or the text of one, as tables and some public sets have it."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        rule = "a score must be a finite number, or null for not ranked"
        raise row.error(f"field '{name}' is {value!r:.40}; {rule}", rule)
    return value


def _listed(row, name, num_responses):
    values = row.values.get(name)
    if values is None:
        raise no_order(row)
    if not isinstance(values, list):
        raise row.error(f"field '{name}' must be a list of numbers, not {kind_of(values)}")
    if len(values) != num_responses:
        rule = f"give one {name.removesuffix('s')} for each response, null for those not ranked"
        raise row.error(f"field '{name}' has {len(values)} entries for {num_responses} responses; {rule}", rule)
    if (num_ranked := num_responses - values.count(None)) < 2:
        rule = "rank at least 2, or leave the record out"
        raise row.error(f"field '{name}' ranks {num_ranked} of {num_responses} responses; {rule}", rule)
    return values


def _refuse_opposite(row, ranks, scores):
    """One of two fields that run against each other is upside down, or of something else."""
    both = [(rank, one) for rank, one in zip(ranks, scores, strict=True) if None not in (rank, one)]
    if any(rank < other and one < another for rank, one in both for other, another in both):
        rule = "fields 'ranks' (1 = best) and 'scores' (higher is better) put the answers in different orders"
        raise row.error(f"{rule}: {shortened(ranks)} and {shortened(scores)}. Keep the one that is meant", rule)


def shortened(values) -> str:
    listed = ["null" if value is None else f"{value!r:.12}" for value in values[:8]]
    return f"[{', '.join(listed + ['...'] * (len(values) > 8))}]"

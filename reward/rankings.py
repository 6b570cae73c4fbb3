"""Rankings of K answers to a prompt from the sources of data.rankings. A pair is a ranking with K = 2."""

import sys
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations

from reward.pairs import pair_ranks, parse_pair
from reward.ranking_hints import not_a_ranking
from reward.ranks import NO_BEST, NOT_A_RANK, Ranks, parse_ranks
from rlhf.config.schema import DataConfig
from rlhf.data.dialogues import parse_prompt_messages, prompt_key
from rlhf.data.load import load_records, other_fields, record_key
from rlhf.data.messages import read_answer
from rlhf.data.records import Row, kind_of
from rlhf.data.report import DataReport
from rlhf.errors import UserError


@dataclass(frozen=True)
class Ranking:
    """One annotator's order of K answers to one prompt."""

    messages: tuple[dict, ...]  # ends with a user turn
    responses: tuple[str, ...]
    ranks: Ranks  # 1 = best, equal = tie, None = not ranked
    annotator: str | None
    weight: float  # in the loss; the weight of a source is how often its rankings come in an epoch
    margin: float | None  # score difference that the annotator's verdict asks for
    key: str
    prompt_id: str | None
    where: str
    meta: dict = field(default_factory=dict)  # the record's other fields, where a gold rule may ask for them

    def identity(self) -> Hashable:
        return prompt_key(self.messages), self.responses, self.ranks, self.annotator

    def ordered(self) -> Iterator[tuple[str, str]]:
        """(better, worse) of every two answers that are not tied."""
        ranked = [(rank, text) for rank, text in zip(self.ranks, self.responses, strict=True) if rank is not None]
        return ((text, other) for (rank, text), (other_rank, other) in permutations(ranked, 2) if rank < other_rank)


def load_rankings(data: DataConfig, report: DataReport) -> dict[str, list[Ranking]]:
    """The rankings by split. Duplicates and contradictions are counted in the report and kept."""
    parse = parse_ranking if data.gold_rule is None else parse_with_others
    splits = load_records(data, report, "rankings", parse)
    once = {id(ranking): ranking for split in splits.values() for ranking in split}  # a weight repeats them
    check_direction(len(once), report)
    report_contradictions(once.values(), report)
    check_order(splits["train"])
    return splits


def check_direction(num_rankings: int, report: DataReport) -> None:
    """Raises UserError where many records that were skipped look like scores: the rest would be learned upside down."""
    skipped = [found for found in report.findings("skipped") if found["rule"] in (NO_BEST, NOT_A_RANK)]
    count = sum(found["count"] for found in skipped)
    if count > (num_rankings + count) / 10:
        raise UserError(
            f"data.rankings: {count} of {num_rankings + count} records have ranks that are none "
            f"({skipped[0]['rule']}; e.g. {skipped[0]['places'][0]}), too many for data.on_error=skip. Where higher is "
            "better these are scores: map them with +data.fields.scores=<their name> in place of ranks"
        )


def check_order(rankings: list[Ranking]) -> None:
    """Raises UserError when no ranking puts any answer above another."""
    if any(any(ranking.ordered()) for ranking in rankings):
        return
    first = rankings[0]
    raise UserError(
        f"{first.where}: field 'ranks' is {list(first.ranks)}, and all {len(rankings)} training rankings of "
        "data.rankings tie all their answers: nothing to learn. Give rankings with an order, 1 = best"
    )


def report_contradictions(rankings: Iterable[Ranking], report: DataReport) -> None:
    """Counts rankings that turn around what an earlier one says, or that have the same answer at two ranks.

    Between two known annotators that is a disagreement, which people are entitled to; otherwise a contradiction.
    """
    seen: dict[tuple, Ranking] = {}  # (prompt, better answer, worse answer) -> the first ranking that says so
    for ranking in rankings:
        prompt, ordered = prompt_key(ranking.messages), list(ranking.ordered())
        against = [seen[prompt, worse, better] for better, worse in ordered if (prompt, worse, better) in seen]
        if any(better == worse for better, worse in ordered):
            report.find("contradictions", f"{ranking.where} has the same answer at two ranks")
        elif against:
            known = None not in (ranking.annotator, against[0].annotator)
            disagree = known and all(other.annotator != ranking.annotator for other in against)
            kind = "disagreements" if disagree else "contradictions"
            report.find(kind, f"{ranking.where} against {against[0].where}")
        for better, worse in ordered:
            seen.setdefault((prompt, better, worse), ranking)


# One record


def parse_ranking(row: Row) -> Ranking:
    """The ranking of a row with `responses` and `ranks` or `scores`, or with `chosen` and `rejected`."""
    is_list = row.has("responses") or row.has("ranks") or row.has("scores")
    is_whole = row.has("responses") and (row.has("ranks") or row.has("scores"))
    is_pair = (row.has("chosen") or row.has("rejected")) and not is_whole
    if is_pair:
        messages, responses = parse_pair(row)
        ranks = pair_ranks(row)
    elif is_list:
        messages, responses = parse_prompt_messages(row), _responses(row)
        ranks = parse_ranks(row, len(responses))
    else:
        raise not_a_ranking(row)
    return Ranking(
        messages=messages,
        responses=responses,
        ranks=ranks,
        annotator=row.name("annotator"),
        weight=_number(row, "weight", above_zero=True) or 1.0,
        margin=_number(row, "margin"),
        key=record_key(row, messages),
        prompt_id=row.name("prompt_id"),
        where=row.where,
    )


def parse_with_others(row: Row) -> Ranking:
    """The same with the record's other fields, which may be many times as large."""
    return replace(parse_ranking(row), meta=other_fields(row, "rankings"))


def _responses(row):
    values = row.values.get("responses")
    if values is None:
        raise row.missing("responses")
    if not isinstance(values, list):
        raise row.error(f"field 'responses' must be a list of strings, not {kind_of(values)}")
    if len(values) < 2:
        raise row.error(f"field 'responses' has {len(values)} answers; a ranking needs 2 or more")
    return tuple(read_answer(value, row, f"responses[{i}]") for i, value in enumerate(values))


def _number(row, name, above_zero=False):
    value = row.values.get(name)
    if value is None:
        return None
    is_finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not is_finite or value < 0 or (above_zero and value == 0):
        rule = f"{name} must be a finite number {'above 0' if above_zero else 'from 0'}, or left out"
        raise row.error(f"field '{name}' is {value!r:.40}; {rule}. {row.if_foreign(name)}", rule)
    return float(value)

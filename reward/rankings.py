"""Rankings of K answers to a prompt from the sources of data.rankings. A pair is a ranking with K = 2."""

import re
import sys
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations, takewhile

from rlhf.data import load_records, record_key
from rlhf.data_report import DataReport
from rlhf.dialogues import check_dialogue, is_hh, parse_hh, parse_prompt_messages, prompt_key
from rlhf.errors import UserError
from rlhf.records import Row, kind_of

MAX_RANK = 1_000_000


@dataclass(frozen=True)
class Ranking:
    """One annotator's order of K answers to one prompt."""

    messages: tuple[dict, ...]  # ends with a user turn
    responses: tuple[str, ...]
    ranks: tuple[int | None, ...]  # 1 = best, equal = tie, None = not ranked
    annotator: str | None
    weight: float  # in the loss; the weight of a source is how often its rankings come in an epoch
    margin: float | None  # score difference that the annotator's verdict asks for
    key: str
    prompt_id: str | None
    where: str

    def identity(self) -> Hashable:
        return prompt_key(self.messages), self.responses, self.ranks, self.annotator

    def ordered(self) -> Iterator[tuple[str, str]]:
        """(better, worse) of every two answers that are not tied."""
        ranked = [(rank, text) for rank, text in zip(self.ranks, self.responses, strict=True) if rank is not None]
        return ((text, other) for (rank, text), (other_rank, other) in permutations(ranked, 2) if rank < other_rank)


def load_rankings(data_cfg, report: DataReport) -> dict[str, list[Ranking]]:
    """The rankings by split. Duplicates and contradictions are counted in the report and kept."""
    splits = load_records(data_cfg, report, "rankings", parse_ranking)
    once = {id(ranking): ranking for split in splits.values() for ranking in split}  # a weight repeats them
    report_contradictions(once.values(), report)
    check_order(splits["train"])
    return splits


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
    """The ranking of a row with `responses` and `ranks`, or with `chosen` and `rejected`."""
    is_pair = (row.has("chosen") or row.has("rejected")) and not row.has("responses")
    if is_pair:
        messages, responses = parse_pair(row)
        ranks = (1, 2)
    else:
        messages, responses = parse_prompt_messages(row), _responses(row)
        ranks = _ranks(row, len(responses))
    return Ranking(
        messages=messages,
        responses=responses,
        ranks=ranks,
        annotator=_name(row, "annotator"),
        weight=_number(row, "weight", above_zero=True) or 1.0,
        margin=_number(row, "margin"),
        key=record_key(row, messages),
        prompt_id=_name(row, "prompt_id"),
        where=row.where,
    )


def _responses(row):
    values = row.values.get("responses")
    if values is None:
        raise row.missing("responses")
    if not isinstance(values, list):
        raise row.error(f"field 'responses' must be a list of strings, not {kind_of(values)}")
    if len(values) < 2:
        raise row.error(f"field 'responses' has {len(values)} answers; a ranking needs 2 or more")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            rule = "an answer must be a string"
            raise row.error(f"field 'responses[{i}]' is {kind_of(value)}; {rule}", rule)
        if not value.strip():
            raise row.error(f"field 'responses[{i}]' is empty; leave the answer and its rank out", "an answer is empty")
    return tuple(values)


def _ranks(row, num_responses):
    values = row.values.get("ranks")
    if values is None:
        raise row.missing("ranks")
    if not isinstance(values, list):
        raise row.error(f"field 'ranks' must be a list of numbers, not {kind_of(values)}")
    if len(values) != num_responses:
        rule = "give one rank for each response, null for those not ranked"
        raise row.error(f"field 'ranks' has {len(values)} entries for {num_responses} responses; {rule}", rule)
    for i, value in enumerate(values):
        is_rank = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK
        if value is not None and not is_rank:
            rule = f"a rank must be a whole number from 1 (the best) to {MAX_RANK}, or null for not ranked"
            raise row.error(f"field 'ranks[{i}]' is {value!r:.40}; {rule}", rule)
    if (num_ranked := num_responses - values.count(None)) < 2:
        rule = "rank at least 2, or leave the record out"
        raise row.error(f"field 'ranks' ranks {num_ranked} of {num_responses} responses; {rule}", rule)
    return tuple(values)


def _name(row, name):
    value = row.values.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise row.error(f"field '{name}' must be a name or a whole number, not {kind_of(value)}")
    return None if value is None else str(value)


def _number(row, name, above_zero=False):
    value = row.values.get(name)
    if value is None:
        return None
    is_finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not is_finite or value < 0 or (above_zero and value == 0):
        rule = f"{name} must be a finite number {'above 0' if above_zero else 'from 0'}, or left out"
        raise row.error(f"field '{name}' is {value!r:.40}; {rule}", rule)
    return float(value)


# Pairs


def parse_pair(row: Row) -> tuple[tuple[dict, ...], tuple[str, str]]:
    """(messages of the prompt, (chosen, rejected)) of a row with `chosen` and `rejected`.

    With a prompt each is an answer, one assistant message, or the whole dialogue. Without, the prompt is what they
    share: whole turns of two dialogues (messages or HH transcripts), whole words of two texts.
    """
    chosen, rejected = _said(row, "chosen"), _said(row, "rejected")
    if row.has("prompt") or row.has("messages"):
        prompt = parse_prompt_messages(row)
        return prompt, (_answer_to(prompt, chosen, row, "chosen"), _answer_to(prompt, rejected, row, "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(chosen, rejected, row)
    return _split_dialogues(chosen, rejected, row)


def _said(row, name):
    """A list of messages, or a text."""
    value = row.values.get(name)
    if value == []:
        raise row.error(f"field '{name}' is empty")
    if isinstance(value, list):
        return value
    text = row.text(name)
    return parse_hh(text) if is_hh(text) else text


def _answer_to(prompt, said, row, name):
    if isinstance(said, str):
        return said
    starts_with_answer = isinstance(said[0], dict) and said[0].get("role") == "assistant"
    dialogue = check_dialogue([*prompt, *said] if starts_with_answer else said, row, name)
    if dialogue[:-1] != prompt:
        raise row.error(f"field '{name}' must be one answer to the prompt, or the prompt's turns and one answer")
    return dialogue[-1]["content"]


def _split_dialogues(chosen, rejected, row):
    if (
        isinstance(chosen, str)
        or isinstance(rejected, str)
        or "assistant" in (_first_role(chosen), _first_role(rejected))
    ):
        raise row.missing("prompt")
    chosen, rejected = check_dialogue(chosen, row, "chosen"), check_dialogue(rejected, row, "rejected")
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if dialogue[-1]["role"] != "assistant":
            raise row.error(f"field '{name}' must end with an answer of the assistant that is not empty")
    if chosen[:-1] != rejected[:-1]:
        raise row.error(
            "fields 'chosen' and 'rejected' differ before their last turn; they must answer the same prompt"
        )
    return chosen[:-1], (chosen[-1]["content"], rejected[-1]["content"])


def _first_role(messages):
    return messages[0].get("role") if isinstance(messages[0], dict) else None


def _split_texts(chosen, rejected, row):
    """The prompt of two texts without one is what they share, up to a white space."""
    same = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    shared = re.match(r"(.*\s)?", "".join(a for a, _ in same), re.DOTALL).group()
    prompt, answers = shared.strip(), (chosen[len(shared) :].strip(), rejected[len(shared) :].strip())
    if not prompt or not all(answers):
        raise row.missing("prompt")
    return ({"role": "user", "content": prompt},), answers

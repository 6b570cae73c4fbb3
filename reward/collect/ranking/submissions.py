"""What somebody enters about an item, from JSON: checked against the item and against the collection's rules."""

import dataclasses
import math
from dataclasses import dataclass, field

from reward.collect.refusals import Refusal
from reward.collect.store.settings import Settings
from reward.collect.texts import clean_text, is_json

MAX_COMMENT, MAX_DEMONSTRATION, MAX_WHY, MAX_CLIENT = 10_000, 50_000, 1_000, 2_000  # characters


@dataclass(frozen=True)
class Submission:
    """A ranking as it was entered: 1 is best, equal is a tie, null is not ranked."""

    ranks: dict[str, int | None] = field(default_factory=dict)  # response id -> order number; gaps do not matter
    unacceptable: list[str] = field(default_factory=list)  # response ids; worst, whatever `ranks` says of them
    not_rankable: str | None = None  # why none can be ranked
    ratings: dict[str, dict[str, int]] = field(default_factory=dict)  # criterion -> response id -> 1 to 5
    comment: str = ""
    demonstration: str = ""  # a better response
    active_seconds: float = 0.0
    client: dict = field(default_factory=dict)  # what the page says of itself

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    def entered(self) -> dict:
        """What the person entered. A page that sends it again has measured a longer time, and says the same."""
        return {name: value for name, value in self.as_dict().items() if name not in ("active_seconds", "client")}


def parse_submission(body: dict) -> Submission:
    """The submission of a request's body. Raises Refusal that names every field of a wrong type."""
    if not isinstance(body, dict):
        raise Refusal(f"a submission is a JSON object, not {type(body).__name__}")
    wrong, values = {}, {}
    for name, value in body.items():
        try:
            values[name] = _PARSERS[name](value)
        except KeyError:
            wrong[str(name)[:40]] = f"is not known; there are {', '.join(_PARSERS)}"
        except Refusal as refusal:
            wrong |= refusal.fields
    _refuse(wrong)
    return Submission(**values)


def check(submission: Submission, response_ids: list[str], settings: Settings) -> None:
    """Raises Refusal that says, by field, why the submission cannot stand for an item of these responses."""
    wrong = {}
    unknown = _unknown(submission, set(response_ids))
    wrong |= {name: f"{other!r:.40} is not a response of this item" for name, other in unknown.items()}
    if "ranks" not in unknown and "unacceptable" not in unknown:
        rule = _none_ranked(submission) if submission.not_rankable else _ranked(submission, response_ids, settings)
        wrong |= rule
    for criterion in submission.ratings:
        if criterion not in settings.criteria:
            wrong["ratings"] = f"{criterion!r:.40} is not rated here; {', '.join(settings.criteria) or 'nothing'} is"
    if settings.require_comment and not submission.comment.strip() and not submission.not_rankable:
        wrong["comment"] = "is needed: say in a sentence why you rank so"
    _refuse(wrong)


def competition_ranks(submission: Submission, response_ids: list[str]) -> dict[str, int | None]:
    """The ranks to store: one more than the number of better responses. Unacceptable ones are tied at the end."""
    if submission.not_rankable:
        return dict.fromkeys(response_ids)
    order = {one: math.inf if one in submission.unacceptable else submission.ranks.get(one) for one in response_ids}
    ranked = [number for number in order.values() if number is not None]
    better = {number: sum(other < number for other in ranked) for number in ranked}
    return {one: None if number is None else 1 + better[number] for one, number in order.items()}


# Rules


def _unknown(submission: Submission, known: set[str]) -> dict[str, str]:
    named = {"ranks": submission.ranks, "unacceptable": submission.unacceptable}
    named["ratings"] = [response_id for ratings in submission.ratings.values() for response_id in ratings]
    others = {name: [one for one in ids if one not in known] for name, ids in named.items()}
    return {name: ids[0] for name, ids in others.items() if ids}


def _none_ranked(submission: Submission) -> dict[str, str]:
    if submission.unacceptable or any(rank is not None for rank in submission.ranks.values()):
        return {"not_rankable": "contradicts the ranks that are given too; clear one of the two"}
    return {}


def _ranked(submission: Submission, response_ids: list[str], settings: Settings) -> dict[str, str]:
    unacceptable = set(submission.unacceptable)
    order = [submission.ranks.get(one) for one in response_ids if one not in unacceptable]
    missing, given = order.count(None), [number for number in order if number is not None]
    if missing and not settings.allow_partial:
        return {"ranks": f"{missing} of {len(response_ids)} responses have no rank yet; rank all of them"}
    if len(response_ids) - missing < 2:
        return {"ranks": "rank 2 responses or more, or say why none can be ranked"}
    if not settings.allow_ties and len(set(given)) < len(given):
        return {"ranks": "puts two responses at the same place; here each has a place of its own"}
    return {}


def _refuse(wrong: dict[str, str]) -> None:
    if wrong:
        raise Refusal("; ".join(f"{name} {what}" for name, what in wrong.items()), wrong)


# Types


def _ranks(value) -> dict:
    _demand(isinstance(value, dict), "ranks", "must be an object: response id -> rank")
    for rank in value.values():
        whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
        _demand(rank is None or whole, "ranks", f"has {rank!r:.40}; a rank is a whole number from 1, the best, or null")
    return dict(value)


def _unacceptable(value) -> list:
    listed = isinstance(value, list) and all(isinstance(one, str) for one in value)
    _demand(listed, "unacceptable", "must be a list of response ids")
    return list(dict.fromkeys(value))


def _ratings(value) -> dict:
    nested = isinstance(value, dict) and all(isinstance(ratings, dict) for ratings in value.values())
    _demand(nested, "ratings", "must be an object: criterion -> response id -> 1 to 5")
    for rating in [rating for ratings in value.values() for rating in ratings.values()]:
        whole = isinstance(rating, int) and not isinstance(rating, bool) and 1 <= rating <= 5
        _demand(whole, "ratings", f"has {rating!r:.40}; a rating is a whole number from 1 to 5, the best")
    return {criterion: dict(ratings) for criterion, ratings in value.items() if ratings}


def _why(value) -> str | None:
    return clean_text(value, "not_rankable", MAX_WHY).strip() or None


def _seconds(value) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    _demand(is_number and 0 <= value < 1e9, "active_seconds", f"is {value!r:.40}; it must be a number of seconds")
    return float(value)


def _client(value) -> dict:
    fits = isinstance(value, dict) and is_json(value, MAX_CLIENT)
    _demand(fits, "client", f"must be a JSON object of at most {MAX_CLIENT} characters, without NUL")
    return value


def _demand(holds: bool, name: str, what: str) -> None:
    if not holds:
        _refuse({name: what})


_PARSERS = {
    "ranks": _ranks,
    "unacceptable": _unacceptable,
    "not_rankable": _why,
    "ratings": _ratings,
    "comment": lambda value: clean_text(value, "comment", MAX_COMMENT),
    "demonstration": lambda value: clean_text(value, "demonstration", MAX_DEMONSTRATION),
    "active_seconds": _seconds,
    "client": _client,
}

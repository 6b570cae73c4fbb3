"""What the pages for annotators show, made from what is stored: nothing of sources, of gold, or of other people."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from markupsafe import Markup
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from reward.collect.ranking.submissions import Submission, parse_submission
from reward.collect.refusals import Refusal
from reward.collect.store.collection import guidelines_in_force, with_texts
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Annotator, Item, Prompt
from reward.collect.web import markdown

LETTERS = "ABCDEFGHI"
EXCERPT = 160  # characters


@dataclass(frozen=True)
class ShownMessage:
    role: str
    text: str
    html: Markup


@dataclass(frozen=True)
class ShownResponse:
    id: str
    letter: str
    text: str
    html: Markup


@dataclass(frozen=True)
class ShownItem:
    messages: list[ShownMessage]
    responses: list[ShownResponse]
    entered: Submission  # what is filled in already
    settings: Settings
    key: str  # of the submission that this view makes


def item(messages: list[dict], responses: list[tuple[str, str]], draft: dict | None, settings: Settings) -> ShownItem:
    lettered = zip(LETTERS, responses, strict=False)
    return ShownItem(
        [ShownMessage(one["role"], one["content"], markdown.untrusted(one["content"])) for one in messages],
        [ShownResponse(one, letter, text, markdown.untrusted(text)) for letter, (one, text) in lettered],
        _read(draft),
        settings,
        uuid4().hex,
    )


def _read(draft: dict | None) -> Submission:
    """A draft is kept as it came; one that is no submission is not shown."""
    try:
        return parse_submission(draft or {})
    except Refusal:
        return Submission()


def for_module(item: ShownItem) -> dict:
    """What static/rank.js must know of an item. Its texts are in the page."""
    return {"entered": item.entered.as_dict(), "settings": item.settings.for_annotators()}


def as_entered(annotation: Annotation) -> dict:
    """A stored ranking, as its form was filled in."""
    names = ("ranks", "unacceptable", "not_rankable", "ratings", "comment", "demonstration")
    return {name: getattr(annotation, name) for name in names}


def ranked_item(session: Session, annotation: Annotation) -> tuple[list[dict], list[tuple[str, str]]]:
    """(messages, (response id, text) in the order that they were shown in)."""
    item = session.get_one(Item, annotation.item_id)
    return session.get_one(Prompt, item.prompt_id).messages, with_texts(session, annotation.display_order)


# In words


def in_letters(annotation: Annotation) -> str:
    """What is stored, as the page names it: B > A = C; unacceptable: D."""
    if annotation.not_rankable:
        return f"none can be ranked ({annotation.not_rankable})"
    letters = dict(zip(annotation.display_order, LETTERS, strict=False))
    ranked = [one for one in letters if annotation.ranks[one] is not None and one not in annotation.unacceptable]
    groups = sorted({annotation.ranks[one] for one in ranked})
    order = " > ".join(" = ".join(letters[one] for one in ranked if annotation.ranks[one] == rank) for rank in groups)
    refused = [letters[one] for one in letters if one in annotation.unacceptable]
    unranked = [letters[one] for one in letters if annotation.ranks[one] is None]
    rest = {"unacceptable": refused, "not ranked": unranked}
    return "; ".join([order] * bool(order) + [f"{name}: {', '.join(them)}" for name, them in rest.items() if them])


def stored(session: Session, annotator: Annotator, annotation_id: str) -> dict | None:
    """The echo of a submission, from the database; None where this person has no such ranking."""
    annotation = annotation_id and session.get(Annotation, annotation_id)
    if not annotation or annotation.annotator_id != annotator.id:
        return None
    return {"text": f"Stored: {in_letters(annotation)}", "annotation_id": annotation.id}


def entries(session: Session, annotations: list[Annotation]) -> list[dict]:
    """Lines of the history."""
    prompts = select(Item.id, Prompt.messages).join(Prompt).where(Item.id.in_([one.item_id for one in annotations]))
    messages = {item_id: found for item_id, found in session.execute(prompts)}
    return [
        {
            "annotation_id": one.id,
            "excerpt": excerpt(messages[one.item_id]),
            "ranking": in_letters(one),
            "revision": one.revision,
            "submitted_at": datetime.fromtimestamp(one.submitted_at, UTC),
        }
        for one in annotations
    ]


def excerpt(messages: list[dict]) -> str:
    text = " ".join(messages[-1]["content"].split())
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}\N{HORIZONTAL ELLIPSIS}"


def duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if minutes < 120:
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{math.ceil(minutes / 60)} hours"


def guidelines_of(session: Session) -> dict:
    """The guidelines in force. html: empty where there are none."""
    newest = guidelines_in_force(session)
    return {"version": newest.version, "html": markdown.guidelines(newest.text)}


def has_newer_guidelines(session: Session, annotator: Annotator, version: int) -> bool:
    """Whether this person has ranked under earlier versions only."""
    latest = select(func.max(Annotation.guidelines_version)).where(Annotation.annotator_id == annotator.id)
    return (session.scalar(latest) or version) < version

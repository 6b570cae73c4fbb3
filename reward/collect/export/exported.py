"""What a version holds: the current annotation of each slot as a canonical row, or counted with why it is left out."""

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect.formats import left_out_of_formats
from reward.collect.progress import Problems
from reward.collect.ranking.annotations import is_current
from reward.collect.refusals import Refusal
from reward.collect.store.collection import collection_of, settings_of
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Annotator, Base, Item, Prompt, Response
from reward.collect.texts import plural
from rlhf.data.sources import DEMONSTRATIONS, RANKINGS
from rlhf.errors import UserError

CHUNK = 500  # annotations that are read, and in memory, together


@dataclass(frozen=True)
class Said:
    """A current annotation with all that it speaks of."""

    annotation: Annotation
    annotator: Annotator
    item: Item
    prompt: Prompt
    responses: list[Response]  # in the order of the item


@dataclass
class Export:
    """What is known of a version's rows once they have all passed by."""

    num_rankings: int = 0
    num_demonstrations: int = 0
    items: set[str] = field(default_factory=set)  # ids of the items that are ranked
    prompts: set[str] = field(default_factory=set)
    annotators: set[str] = field(default_factory=set)
    excluded: Counter = field(default_factory=Counter)  # reason -> annotations that are not among the rankings
    excluded_demonstrations: Counter = field(default_factory=Counter)
    policies: dict[str, str] = field(default_factory=dict)  # manifest sha256 -> path of an artifact that was sampled
    left_out: dict[str, Counter] = field(default_factory=dict)  # format -> why it cannot hold how many of the rankings

    def add_ranking(self, said: Said, row: dict) -> None:
        self.num_rankings += 1
        self.items.add(said.item.id)
        self.prompts.add(said.prompt.id)
        self.annotators.add(said.annotator.id)
        self.policies |= sampled_from(said.responses)
        for name, why in left_out_of_formats(row):
            self.left_out.setdefault(name, Counter())[why] += 1

    def counts(self) -> dict[str, int]:
        return {
            "rankings": self.num_rankings,
            "items": len(self.items),
            "prompts": len(self.prompts),
            "annotators": len(self.annotators),
            "demonstrations": self.num_demonstrations,
            "excluded": sum(self.excluded.values()),
        }


# Rows


def pseudonym(key: str, annotator_id: str) -> str:
    """A person's name in exports: the same in every version of a collection, and of no use without its key (hex)."""
    digest = hmac.new(bytes.fromhex(key), annotator_id.encode(), hashlib.sha256).hexdigest()
    return f"anon-{digest[:12]}"


def canonical_row(said: Said, key: str) -> dict:
    """The ranking that a person made, as the reward stage reads it. Answers are named by their index."""
    annotation, ids = said.annotation, [response.id for response in said.responses]
    meta = {
        "item_id": said.item.id,
        "annotation_id": annotation.id,
        "revision": annotation.revision,
        "display_order": [ids.index(one) for one in annotation.display_order],
        "unacceptable": sorted(ids.index(one) for one in annotation.unacceptable),
        "ratings": {name: [given.get(one) for one in ids] for name, given in annotation.ratings.items()},
        "comment": annotation.comment,
        "seconds": annotation.active_seconds,
        "guidelines_version": annotation.guidelines_version,
        "item_meta": said.item.meta,
        "sources": [response.sources for response in said.responses],
    }
    row = {
        "prompt": said.prompt.messages,
        "responses": [response.text for response in said.responses],
        "ranks": [annotation.ranks.get(one) for one in ids],
        **_names(said, key),
        "meta": {name: value for name, value in meta.items() if value not in (None, {})},
    }
    return {name: value for name, value in row.items() if value is not None}


def demonstration_row(said: Said, key: str) -> dict:
    """The answer that a person wrote, as the SFT stage reads it."""
    row = {"prompt": said.prompt.messages, "completion": said.annotation.demonstration, **_names(said, key)}
    row["meta"] = {"item_id": said.item.id, "annotation_id": said.annotation.id}
    return {name: value for name, value in row.items() if value is not None}


def _names(said, key):
    names = {"annotator": pseudonym(key, said.annotator.id), "prompt_id": said.prompt.external_id or said.prompt.id}
    return {**names, "group": said.prompt.group}


def why_excluded(annotation: Annotation, annotator: Annotator, item: Item, settings: Settings) -> str | None:
    """Why nothing of an annotation is exported; None where it is."""
    if item.kind != "normal":
        return item.kind  # gold, repeat: what checks the annotators is not what they are asked for
    if item.comparison is not None:
        return "comparison"  # asked about held-out prompts, which nothing may train on
    if item.state == "cancelled":
        return "cancelled item"
    if annotator.status == "paused":
        return "paused annotator"
    if annotation.active_seconds < settings.min_seconds:
        return "too fast"
    return None


def why_no_ranking(annotation: Annotation) -> str | None:
    """Why an annotation holds no ranking to train on."""
    if annotation.not_rankable:
        return "not rankable"
    num_ranked = sum(rank is not None for rank in annotation.ranks.values())
    return "fewer than two ranked" if num_ranked < 2 else None


def exported_rows(session: Session, export: Export) -> Iterator[tuple[str, dict]]:
    """(name of a version's file, a row of it) of all that a version made now would hold, counted in `export`.

    Raises Refusal at the end where rows of the database do not fit together; it says which.
    """
    settings, key, torn = settings_of(session), collection_of(session).pseudonym_key, Problems()
    for said in current(session, lambda told: torn.append(UserError(told))):
        annotation = said.annotation
        reason = why_excluded(annotation, said.annotator, said.item, settings)
        if annotation.demonstration and reason is None:
            export.num_demonstrations += 1
            yield DEMONSTRATIONS, demonstration_row(said, key)
        elif annotation.demonstration:
            export.excluded_demonstrations[reason] += 1
        if reason := reason or why_no_ranking(annotation):
            export.excluded[reason] += 1
        else:
            row = canonical_row(said, key)
            export.add_ranking(said, row)
            yield RANKINGS, row
    _require_whole(torn)


def num_rankings(session: Session) -> int:
    """Rankings that a version made now would hold."""
    settings = settings_of(session)
    found = select(Annotation, Annotator, Item).where(is_current())
    found = found.join(Annotator, Annotation.annotator_id == Annotator.id).join(Item, Annotation.item_id == Item.id)
    rows = session.execute(found.execution_options(yield_per=CHUNK))
    return sum(not (why_excluded(*row, settings) or why_no_ranking(row[0])) for row in rows)


def sampled_from(responses: Iterable[Response]) -> dict[str, str]:
    """manifest sha256 -> path, of the artifacts that gave the answers."""
    sources = [source for response in responses for source in response.sources]
    named = [(source.get("manifest_sha256"), source.get("policy")) for source in sources]
    return {sha256: path for sha256, path in named if isinstance(sha256, str) and isinstance(path, str)}


# The database's rows, a chunk at a time


def current(session: Session, tell: Callable[[str], None]) -> Iterator[Said]:
    """The latest revision of each slot's annotation, in the order of submission. tell: hears of those that are torn."""
    order = select(Annotation.id).where(is_current()).order_by(Annotation.submitted_at, Annotation.id)
    ids = session.scalars(order).all()
    for start in range(0, len(ids), CHUNK):
        yield from _said(session, ids[start : start + CHUNK], tell)


def _said(session, ids, tell):
    annotations = _by_id(session, Annotation, ids)
    items = _by_id(session, Item, {one.item_id for one in annotations.values()})
    annotators = _by_id(session, Annotator, {one.annotator_id for one in annotations.values()})
    prompts = _by_id(session, Prompt, {item.prompt_id for item in items.values()})
    responses = _by_id(session, Response, {one for item in items.values() for one in item.response_ids})
    for annotation in map(annotations.get, ids):
        item = items.get(annotation.item_id)
        prompt, annotator = item and prompts.get(item.prompt_id), annotators.get(annotation.annotator_id)
        answers = [responses.get(one) for one in item.response_ids] if item else []
        if torn := _torn(annotation, annotator, item, prompt, answers):
            tell(f"annotation {annotation.id}: {torn}")
        else:
            yield Said(annotation, annotator, item, prompt, answers)


def _by_id(session: Session, table: type[Base], ids: Iterable[str]) -> dict:
    return {row.id: row for row in session.scalars(select(table).where(table.id.in_(ids)))}


def _torn(annotation, annotator, item, prompt, answers) -> str | None:
    """What an annotation speaks of and the database does not have; None where all is there."""
    if annotator is None:
        return f"its annotator {annotation.annotator_id} is gone"
    if item is None:
        return f"its item {annotation.item_id} is gone"
    if prompt is None:
        return f"the prompt {item.prompt_id} of its item {item.id} is gone"
    if None in answers:
        return f"the response {item.response_ids[answers.index(None)]} of its item {item.id} is gone"
    named = {*annotation.ranks, *annotation.unacceptable, *annotation.display_order}
    others = sorted(named - set(item.response_ids))
    return f"it speaks of response {others[0]}, which its item {item.id} does not have" if others else None


def _require_whole(torn: Problems) -> None:
    if torn:
        raise Refusal(
            f"{plural(len(torn), 'annotation')} cannot be exported; the collection has been changed from outside, put "
            "a backup in its place\n" + "\n".join(torn.lines())
        )

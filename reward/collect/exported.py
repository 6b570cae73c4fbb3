"""What a version holds: the current annotation of each slot as a canonical row, or counted with why it is left out."""

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect.annotations import is_current
from reward.collect.items import collection_of, settings_of
from reward.collect.settings import Settings
from reward.collect.tables import Annotation, Annotator, Item, Prompt, Response
from rlhf.sources import DEMONSTRATIONS, RANKINGS


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
    """What goes into a version."""

    rankings: list[dict] = field(default_factory=list)
    demonstrations: list[dict] = field(default_factory=list)
    excluded: Counter = field(default_factory=Counter)  # reason -> annotations that are not among the rankings
    excluded_demonstrations: Counter = field(default_factory=Counter)
    policies: dict[str, str] = field(default_factory=dict)  # manifest sha256 -> path of an artifact that was sampled

    def files(self) -> dict[str, list[dict]]:
        """Name -> rows of each file that a version of it has."""
        files = {RANKINGS: self.rankings, DEMONSTRATIONS: self.demonstrations}
        return {name: rows for name, rows in files.items() if rows}

    def counts(self) -> dict[str, int]:
        return {
            "rankings": len(self.rankings),
            "items": len({row["meta"]["item_id"] for row in self.rankings}),
            "prompts": len({json.dumps(row["prompt"]) for row in self.rankings}),
            "annotators": len({row["annotator"] for row in self.rankings}),
            "demonstrations": len(self.demonstrations),
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


def why_excluded(said: Said, settings: Settings) -> str | None:
    """Why nothing of an annotation is exported; None where it is."""
    if said.item.kind != "normal":
        return said.item.kind  # gold, repeat: what checks the annotators is not what they are asked for
    if said.item.comparison is not None:
        return "comparison"  # asked about held-out prompts, which nothing may train on
    if said.item.state == "cancelled":
        return "cancelled item"
    if said.annotator.status == "paused":
        return "paused annotator"
    if said.annotation.active_seconds < settings.min_seconds:
        return "too fast"
    return None


def why_no_ranking(annotation: Annotation) -> str | None:
    """Why an annotation holds no ranking to train on."""
    if annotation.not_rankable:
        return "not rankable"
    num_ranked = sum(rank is not None for rank in annotation.ranks.values())
    return "fewer than two ranked" if num_ranked < 2 else None


def collect_export(session: Session) -> Export:
    """All that a version made now would hold."""
    settings, key, export = settings_of(session), collection_of(session).pseudonym_key, Export()
    for said in current(session):
        reason = why_excluded(said, settings)
        if said.annotation.demonstration and reason is None:
            export.demonstrations.append(demonstration_row(said, key))
        elif said.annotation.demonstration:
            export.excluded_demonstrations[reason] += 1
        reason = reason or why_no_ranking(said.annotation)
        if reason:
            export.excluded[reason] += 1
        else:
            export.rankings.append(canonical_row(said, key))
            export.policies |= sampled_from(said.responses)
    return export


def current(session: Session) -> Iterator[Said]:
    """The latest revision of each slot's annotation, in the order of submission."""
    found = select(Annotation, Annotator, Item, Prompt).where(is_current())
    found = found.join(Annotator, Annotation.annotator_id == Annotator.id).join(Item, Annotation.item_id == Item.id)
    found = found.join(Prompt, Item.prompt_id == Prompt.id).order_by(Annotation.submitted_at, Annotation.id)
    responses = {response.id: response for response in session.scalars(select(Response))}
    for annotation, annotator, item, prompt in session.execute(found):
        yield Said(annotation, annotator, item, prompt, [responses[one] for one in item.response_ids])


def sampled_from(responses: Iterable[Response]) -> dict[str, str]:
    """manifest sha256 -> path, of the artifacts that gave the answers."""
    sources = [source for response in responses for source in response.sources]
    named = [(source.get("manifest_sha256"), source.get("policy")) for source in sources]
    return {sha256: path for sha256, path in named if isinstance(sha256, str) and isinstance(path, str)}

"""Rankings as people submit them: stored once however often they are sent, and only ever added to."""

from dataclasses import replace
from uuid import uuid4

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from reward.collect.people.paused import require_active
from reward.collect.ranking.queue import change_held, display_order, not_held
from reward.collect.ranking.submissions import Submission, check, competition_ranks
from reward.collect.refusals import Conflict, NotFound, Refusal
from reward.collect.store import audit
from reward.collect.store.collection import collection_of, guidelines_in_force, settings_of
from reward.collect.store.tables import Annotation, Annotator, Draft, Item, Slot
from reward.collect.texts import is_json, is_text
from rlhf.hashing import json_sha256

MAX_KEY, MAX_DRAFT = 200, 200_000  # characters


class TooLate(Conflict):
    """The item went to somebody else. The submission is kept as a draft."""

    keeps_writes = True


# Submissions


def submit(
    session: Session,
    annotator: Annotator,
    slot_id: str,
    submission: Submission,
    key: str,
    now: float,
    request_id: str = "",
) -> Annotation:
    """Stores the ranking of a slot. The same key with the same content gives what was stored the first time.

    After the lease it is stored as well, unless the slot was taken by somebody else: then TooLate, and it is a draft.
    """
    audit.one_writer(session)
    body_sha256 = json_sha256([slot_id, submission.entered()])
    if (stored := _stored(session, annotator, key, body_sha256)) is not None:
        return stored
    require_active(session, annotator)
    slot = session.get(Slot, slot_id, populate_existing=True)
    if slot is None:
        raise not_held(slot, annotator)
    item = session.get(Item, slot.item_id, populate_existing=True)
    check(submission, item.response_ids, settings_of(session))
    try:
        change_held(session, annotator, slot_id, state="done", lease_until=None)
    except Conflict as conflict:
        raise _kept_as_draft(session, annotator, slot_id, submission, conflict, now) from None
    order = display_order(collection_of(session).seed, item.id, annotator.id, item.response_ids)
    about = {"slot_id": slot_id, "item_id": item.id, "display_order": order, "started_at": slot.started_at}
    annotation = _add(session, annotator, submission, about, key, body_sha256, now)
    _forget_drafts(session, item.id, annotator.id)
    _close_if_done(session, item.id)
    audit.append_annotation(session, annotator.id, "submit", annotation, None, request_id, now)
    return annotation


def revise(
    session: Session,
    annotator: Annotator,
    annotation_id: str,
    submission: Submission,
    key: str,
    now: float,
    request_id: str = "",
) -> Annotation:
    """Stores what this person now says of an item that they have ranked. What they said before stays beside it."""
    audit.one_writer(session)
    body_sha256 = json_sha256([annotation_id, submission.entered()])
    if (stored := _stored(session, annotator, key, body_sha256)) is not None:
        return stored
    require_active(session, annotator)
    revised = latest_of(session, annotator, annotation_id)
    if revised.id != annotation_id:
        raise Conflict("you have changed this ranking since, in another tab; reload it", {"annotation_id": revised.id})
    check(submission, revised.display_order, settings_of(session))
    same = ("slot_id", "item_id", "display_order", "started_at")
    about = {name: getattr(revised, name) for name in same} | {"revision": revised.revision + 1}
    spent = revised.active_seconds + submission.active_seconds  # on the ranking as it stands now: looking again counts
    submission = replace(submission, active_seconds=spent)
    annotation = _add(session, annotator, submission, about, key, body_sha256, now)
    audit.append_annotation(session, annotator.id, "revise", annotation, annotation_id, request_id, now)
    return annotation


def _stored(session, annotator: Annotator, key: str, body_sha256: str) -> Annotation | None:
    """The annotation that was stored under this key. No two requests get here at once: see audit.one_writer."""
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY or not is_text(key):
        rule = f"must have 1 to {MAX_KEY} characters; make a new UUID for each submission"
        raise Refusal(f"Idempotency-Key {rule}", {"Idempotency-Key": rule})
    stored = session.scalar(select(Annotation).where(Annotation.idempotency_key == key))
    if stored is None or (stored.annotator_id == annotator.id and stored.body_sha256 == body_sha256):
        return stored
    rule = "was used for another submission; make a new one"
    raise Refusal(f"Idempotency-Key {rule}", {"Idempotency-Key": rule})


def _add(session, annotator: Annotator, submission: Submission, about: dict, key: str, body_sha256: str, now: float):
    seconds = min(submission.active_seconds, max(0.0, now - about["started_at"]))
    order, unacceptable = about["display_order"], set(submission.unacceptable)
    annotation = Annotation(
        **{"revision": 1} | about,
        id=uuid4().hex,
        annotator_id=annotator.id,
        ranks=competition_ranks(submission, order),
        unacceptable=[response_id for response_id in order if response_id in unacceptable],
        not_rankable=submission.not_rankable,
        ratings=submission.ratings,
        comment=submission.comment,
        demonstration=submission.demonstration,
        guidelines_version=guidelines_in_force(session).version,
        submitted_at=float(now),
        active_seconds=float(seconds),
        client=submission.client,
        idempotency_key=key,
        body_sha256=body_sha256,
    )
    session.add(annotation)
    session.flush()
    return annotation


def _close_if_done(session, item_id: str) -> None:
    """Gold items stay open: each person gets a turn of their own at them."""
    undone = select(Slot.id).where(Slot.item_id == item_id, Slot.state != "done").exists()
    closing = update(Item).where(Item.id == item_id, Item.state == "open", Item.kind != "gold", ~undone)
    session.execute(closing.values(state="done").execution_options(synchronize_session=False))


# Drafts


def save_draft(session: Session, annotator: Annotator, slot_id: str, payload: dict, rev: int, now: float) -> int:
    """Keeps what somebody has entered so far, and says its new revision.

    rev: the revision that the page has seen, 0 for none. Where another tab was faster, Conflict with `current`.
    """
    _check_draft(payload, rev)
    require_active(session, annotator)
    slot, draft = _locked(session, slot_id), _draft(session, slot_id, annotator.id)
    is_held = slot is not None and slot.annotator_id == annotator.id and slot.state == "held"
    if not is_held and draft is None:
        raise not_held(slot, annotator)
    if draft is not None and draft.payload == payload:
        return draft.rev  # sent again, since the answer to the first was lost
    if (draft.rev if draft else 0) != rev:
        current = {"rev": draft.rev, "payload": draft.payload} if draft else {"rev": 0, "payload": None}
        raise Conflict("another tab of yours has saved this item since", current)
    return _write_draft(session, slot_id, annotator.id, draft, payload, now)


def _check_draft(payload, rev) -> None:
    if isinstance(rev, bool) or not isinstance(rev, int) or rev < 0:
        rule = "must be the revision that was read last, or 0"
        raise Refusal(f"rev is {rev!r:.40}; it {rule}", {"rev": rule})
    if not isinstance(payload, dict) or not is_json(payload, MAX_DRAFT):
        rule = f"must be a JSON object of at most {MAX_DRAFT} characters, without NUL"
        raise Refusal(f"payload {rule}", {"payload": rule})


def _locked(session, slot_id: str) -> Slot | None:
    """The slot, which keeps until the end of this transaction whoever else would write a draft of it waiting."""
    return session.get(Slot, slot_id, populate_existing=True, with_for_update={"key_share": True})


def _draft(session, slot_id: str, annotator_id: str) -> Draft | None:
    return session.get(Draft, (slot_id, annotator_id), populate_existing=True)


def _write_draft(session, slot_id: str, annotator_id: str, draft: Draft | None, payload: dict, now: float) -> int:
    if draft is None:
        draft = Draft(slot_id=slot_id, annotator_id=annotator_id, rev=0)
        session.add(draft)
    draft.payload, draft.rev, draft.updated_at = payload, draft.rev + 1, float(now)
    session.flush()
    return draft.rev


def _kept_as_draft(
    session, annotator: Annotator, slot_id: str, submission: Submission, conflict, now: float
) -> Conflict:
    """The error to raise for a submission that came too late. Ids of slots are secret: who has one had the slot."""
    if _locked(session, slot_id).annotator_id == annotator.id:
        return conflict  # theirs, and submitted already
    payload = submission.as_dict()
    rev = _write_draft(session, slot_id, annotator.id, _draft(session, slot_id, annotator.id), payload, now)
    why = "your time for this item ran out and it went to somebody else; what you entered is kept"
    return TooLate(why, {"rev": rev, "payload": payload})


def _forget_drafts(session, item_id: str, annotator_id: str) -> None:
    """The annotation holds all that the drafts of this person on the item held."""
    slots = select(Slot.id).where(Slot.item_id == item_id).scalar_subquery()
    drafts = delete(Draft).where(Draft.annotator_id == annotator_id, Draft.slot_id.in_(slots))
    session.execute(drafts.execution_options(synchronize_session=False))


# What was submitted


def history(session: Session, annotator: Annotator, limit: int = 20, before: str | None = None) -> list[Annotation]:
    """This person's own rankings as they stand now, the newest first.

    before: the id of the last one on the page before.
    """
    rows = select(Annotation).where(is_current(), Annotation.annotator_id == annotator.id)
    last = before and session.get(Annotation, before)
    if last:
        earlier = and_(Annotation.submitted_at == last.submitted_at, Annotation.id < last.id)
        rows = rows.where(or_(Annotation.submitted_at < last.submitted_at, earlier))
    return list(session.scalars(rows.order_by(Annotation.submitted_at.desc(), Annotation.id.desc()).limit(limit)))


def latest_of(session: Session, annotator: Annotator, annotation_id: str) -> Annotation:
    """This ranking of theirs as it stands now. Raises NotFound."""
    named = session.get(Annotation, annotation_id)
    if named is None or named.annotator_id != annotator.id:
        raise NotFound("there is no such ranking of yours")
    return session.scalars(select(Annotation).where(is_current(), Annotation.slot_id == named.slot_id)).one()


def is_current() -> ColumnElement[bool]:
    """The annotation is the latest revision of its slot's."""
    later = aliased(Annotation)
    return ~exists().where(later.slot_id == Annotation.slot_id, later.revision > Annotation.revision)

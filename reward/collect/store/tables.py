"""The tables of a collection. One database holds one collection. Times are seconds since 1970, UTC; ids are random.

What people entered is only ever added to: an edit is a new annotation of the same slot with the next revision.
"""

from typing import ClassVar

from sqlalchemy import JSON, Float, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map: ClassVar = {dict: JSON, list: JSON, float: Float(53)}


class Collection(Base):
    """The one row that says what is collected here."""

    __tablename__ = "collection"
    id: Mapped[int] = mapped_column(primary_key=True)  # always 1
    name: Mapped[str]
    settings: Mapped[dict]
    seed: Mapped[str]  # hex; decides on display orders and on when gold items come; never leaves the server
    pseudonym_key: Mapped[str]  # hex; an annotator's name in exports is an HMAC under it
    origin: Mapped[str | None]  # where people reach the page, as the server last said, or `init --origin`
    created_at: Mapped[float]


class Guidelines(Base):
    __tablename__ = "guidelines"
    version: Mapped[int] = mapped_column(primary_key=True)  # 1, 2, ...; annotations name the one they were made under
    text: Mapped[str]  # markdown
    created_at: Mapped[float]


class Prompt(Base):
    __tablename__ = "prompt"
    id: Mapped[str] = mapped_column(primary_key=True)
    external_id: Mapped[str | None]  # the record's own prompt_id
    messages: Mapped[list]  # [{role, content}], ends with a user turn
    group: Mapped[str | None] = mapped_column("group_key")  # the record's `group`: splits keep it together
    content_sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[float]


class Response(Base):
    """One answer to a prompt. The same text from several sources is one response with several sources."""

    __tablename__ = "response"
    __table_args__ = (UniqueConstraint("prompt_id", "content_sha256"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompt.id"), index=True)
    text: Mapped[str]
    sources: Mapped[list]  # [{policy, manifest_sha256, temperature, seed, sample} or whatever an import says]
    content_sha256: Mapped[str]
    created_at: Mapped[float]


class Item(Base):
    """What is ranked: a fixed set of 2 to 9 responses to a prompt."""

    __tablename__ = "item"
    id: Mapped[str] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompt.id"), index=True)
    response_ids: Mapped[list]
    content_sha256: Mapped[str] = mapped_column(index=True)  # of its responses: equal where two items ask the same
    kind: Mapped[str]  # normal, gold, repeat (of another item, for one person)
    state: Mapped[str]  # open, done, review (often skipped or flagged: for the lead), cancelled, identical (one answer)
    gold_ranks: Mapped[dict | None]  # response id -> rank
    repeat_of: Mapped[str | None] = mapped_column(ForeignKey("item.id"))
    comparison: Mapped[str | None]  # the name of the blind comparison of policies that it belongs to
    priority: Mapped[float]  # higher is served first
    meta: Mapped[dict]  # how the priority came about; of a comparison, "policies": {response id: [names]}
    created_at: Mapped[float]


class Slot(Base):
    """One person's turn at an item. An item has as many as people should rank it; gold items get one per person."""

    __tablename__ = "slot"
    __table_args__ = (
        UniqueConstraint("item_id", "n"),
        UniqueConstraint("item_id", "annotator_id"),  # null is distinct: nobody gets an item twice
        Index("slot_by_state", "state", "lease_until"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"), index=True)
    n: Mapped[int]  # 0, 1, ...; from `overlap` on: opinions beyond it
    annotator_id: Mapped[str | None] = mapped_column(ForeignKey("annotator.id"), index=True)
    state: Mapped[str]  # open, held, done
    lease_until: Mapped[float | None]
    started_at: Mapped[float | None]  # when its present holder first saw it


class Skip(Base):
    __tablename__ = "skip"
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"), primary_key=True)
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotator.id"), primary_key=True)
    reason: Mapped[str]
    at: Mapped[float]


class Flag(Base):
    """A warning to the lead about a prompt, or about one response."""

    __tablename__ = "flag"
    id: Mapped[str] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"), index=True)
    response_id: Mapped[str | None]
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotator.id"))
    reason: Mapped[str]
    note: Mapped[str]
    at: Mapped[float]


class Draft(Base):
    """What somebody has entered so far, or entered too late."""

    __tablename__ = "draft"
    slot_id: Mapped[str] = mapped_column(ForeignKey("slot.id"), primary_key=True)
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotator.id"), primary_key=True)
    payload: Mapped[dict]
    rev: Mapped[int]
    updated_at: Mapped[float]


class Annotation(Base):
    """A submitted ranking. The current one of a slot is that with the highest revision."""

    __tablename__ = "annotation"
    __table_args__ = (UniqueConstraint("slot_id", "revision"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    slot_id: Mapped[str] = mapped_column(ForeignKey("slot.id"), index=True)
    revision: Mapped[int]  # 1, 2, ...
    item_id: Mapped[str] = mapped_column(ForeignKey("item.id"), index=True)
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotator.id"), index=True)
    display_order: Mapped[list]  # response ids as they were shown
    ranks: Mapped[dict]  # response id -> competition rank: 1 is best, equal is a tie, null is not ranked
    unacceptable: Mapped[list]  # response ids
    not_rankable: Mapped[str | None]  # why none could be ranked; then all ranks are null
    ratings: Mapped[dict]  # criterion -> response id -> 1 to 5
    comment: Mapped[str]
    demonstration: Mapped[str]  # a better answer of the annotator's own, or ""
    guidelines_version: Mapped[int]
    started_at: Mapped[float]
    submitted_at: Mapped[float]
    active_seconds: Mapped[float]  # as the page measured it, at most submitted_at - started_at
    client: Mapped[dict]  # what the page says of itself: input method, width
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    body_sha256: Mapped[str]  # of what was sent, so that a repeated key with another body is refused


class Annotator(Base):
    __tablename__ = "annotator"
    id: Mapped[str] = mapped_column(primary_key=True)
    handle: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]  # annotator, lead
    password_hash: Mapped[str]  # argon2id
    status: Mapped[str]  # active, paused
    created_at: Mapped[float]


class Invite(Base):
    __tablename__ = "invite"
    sha256: Mapped[str] = mapped_column(primary_key=True)  # of the secret in the link
    role: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    used_at: Mapped[float | None]
    annotator_id: Mapped[str | None] = mapped_column(ForeignKey("annotator.id"))  # who used it, or alone may


class Session(Base):
    """A signed-in browser. The cookie holds the secret, this table only its hash."""

    __tablename__ = "session"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotator.id"), index=True)
    csrf_token: Mapped[str]
    created_at: Mapped[float]
    seen_at: Mapped[float]
    address: Mapped[str]  # where it signed in from, "" where that was not noted
    browser: Mapped[str]  # as a person would name it, likewise


class Token(Base):
    """A key for scripts."""

    __tablename__ = "token"
    id: Mapped[str] = mapped_column(primary_key=True)
    annotator_id: Mapped[str] = mapped_column(ForeignKey("annotator.id"), index=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    prefix: Mapped[str]  # its first characters, to tell it from others
    scopes: Mapped[list]  # annotate, read, export
    created_at: Mapped[float]
    expires_at: Mapped[float]
    revoked_at: Mapped[float | None]


class SignInFailure(Base):
    """Failed attempts, by what lockout.py counts them for."""

    __tablename__ = "sign_in_failure"
    id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(index=True)
    at: Mapped[float]


class Version(Base):
    """An immutable export."""

    __tablename__ = "version"
    seq: Mapped[int] = mapped_column(primary_key=True)
    manifest_sha256: Mapped[str]
    counts: Mapped[dict]
    created_by: Mapped[str]
    created_at: Mapped[float]


class Audit(Base):
    """Who did what. Each row carries the hash of the one before, so that a change or a gap shows."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)  # 1, 2, ... without gaps
    at: Mapped[float]
    actor: Mapped[str]  # annotator id, or "command line"
    action: Mapped[str]
    object: Mapped[str]
    before: Mapped[dict | None]
    after: Mapped[dict | None]
    request_id: Mapped[str]
    written: Mapped[dict | None]  # table -> key -> digest of the row as this step left it, null where it took it out
    prev_hash: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)

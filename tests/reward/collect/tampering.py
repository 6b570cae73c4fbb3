"""A collection with one of everything that the audit guards, and ways to change it from outside."""

from collect_world import NOW, add_new_items, do, hand_in, take
from sqlalchemy import text
from sqlalchemy.orm import Session

from reward.collect import home
from reward.collect.export import versions
from reward.collect.people import accounts, tokens
from reward.collect.ranking import queue
from reward.collect.ranking.annotations import revise
from reward.collect.ranking.submissions import parse_submission
from reward.collect.store import audit
from reward.collect.store.database import Database
from reward.collect.store.row_digests import GUARDED, written_digests
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Audit


def make_full_collection(database: Database, folder) -> None:
    """Three people, five items and a gold one, three rankings of which one is revised, a skip, a flag, a version."""
    settings = Settings(agreement_share=0.0, gold_share=0.0)
    home.create_collection(database, "full", "Prefer the *true* answer.", settings, NOW)
    lena, ann, ben = (accept(database, *who) for who in (("lead", "lena"), ("annotator", "ann"), ("annotator", "ben")))
    do(database, tokens.create_token, lena, ["read"], 300, NOW)
    do(database, accounts.create_invite, "annotator", 7, lena.id, NOW)
    add_new_items(database, 5)
    add_new_items(database, 1, first=50, gold_ranks=[1, 2, 3])
    made = [hand_in(database, ann, take(database, ann), NOW + 60 * i, active_seconds=0.0) for i in (1, 2, 3)]
    again = parse_submission({"ranks": dict.fromkeys(made[0].ranks, 1)})
    do(database, revise, ann, made[0].id, again, "again", NOW + 500)
    work = take(database, ben)
    do(database, queue.flag, ben, work.slot_id, None, "cut off", "it ends early", NOW)
    do(database, queue.skip, ben, work.slot_id, "I do not know", NOW)
    versions.export_version(database, folder, lena.id, NOW + 1000)


def accept(database: Database, role: str, handle: str):
    """A new account, by invite."""
    secret = do(database, accounts.create_invite, role, 7, "command line", NOW)
    return do(database, accounts.accept_invite, secret, handle, f"correct horse {handle}", NOW)


def tamper(session: Session, *statements: str) -> None:
    """Plain SQL, each statement of which changes something."""
    for statement in statements:
        assert session.connection().exec_driver_sql(statement).rowcount > 0, statement


def change_and_write_anew(session: Session, statement: str, table=Annotation) -> None:
    """What somebody does who knows our code: a change, its digest in the audit, and each hash from there on."""
    tamper(session, statement)
    session.expire_all()
    keys = [tuple(row) for row in session.execute(text(f"SELECT id FROM {table.__tablename__}"))]
    now_digests = written_digests(session, table, keys)
    prev_hash = audit.FIRST_PREV_HASH
    for row in session.query(Audit).order_by(Audit.id):
        known = (row.written or {}).get(table.__tablename__, {})
        if known:
            row.written = {**row.written, table.__tablename__: {key: now_digests[key] for key in known}}
        row.prev_hash, row.hash = prev_hash, audit.row_hash({**vars(row), "prev_hash": prev_hash}, None)
        prev_hash = row.hash
    session.flush()


def tables() -> set[str]:
    return {table.__tablename__ for table in GUARDED}

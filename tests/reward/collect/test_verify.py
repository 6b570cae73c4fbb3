"""Whoever changes a collection from outside is found out: table, row and what does not fit are named."""

import re

import pytest
import sqlalchemy
from tampering import change_and_write_anew, make_full_collection, tables, tamper

from reward.collect.integrity import verify
from reward.collect.integrity.findings import Altered
from reward.collect.store.audit_key import VARIABLE
from reward.collect.store.database import Database
from rlhf.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("full")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def full(request, folder):
    """Each test changes it in a transaction that is undone."""
    made = make_postgres(request) if request.param == "postgresql" else f"sqlite:///{folder}/collect.db"
    database = Database(made)
    make_full_collection(database, folder / request.param)
    yield database
    database.close()


def make_postgres(request) -> str:
    """A database of its own on the tests' server."""
    postgres = request.getfixturevalue("postgres")
    server = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE tampered"))
    server.dispose()
    return postgres.replace("@/postgres?", "@/tampered?")


def versions_of(database: Database, folder):
    return folder / ("sqlite" if database.is_sqlite else "postgresql") / "versions"


def found(database: Database, *statements: str, versions=None) -> list[str]:
    """What is said of the collection after these changes, which are undone again."""
    with database.read() as session:
        tamper(session, *statements)
        return verify.check(session, versions).findings.lines()


def test_an_untouched_collection_is_whole(full, folder):
    with full.read() as session:
        checked = verify.check(session, versions_of(full, folder), folders=True)
    assert checked.findings.lines() == []
    assert (checked.knows_all, checked.versions, checked.keyed_from) == (True, 1, None)


ID = "[0-9a-f]{32}"
BY = r"not as audit row \d+ \([a-z_ ]+\) wrote it"
A_RESPONSE = "(SELECT min(id) FROM response WHERE text = '0.0')"
OTHER_RESPONSE = "(SELECT min(id) FROM response WHERE text = '0.1')"
ONE = "(SELECT min(id) FROM {})"
DONE = "(SELECT min(id) FROM slot WHERE state = 'done')"
OPEN = "(SELECT min(id) FROM slot WHERE state = 'open')"
COPY = "INSERT INTO annotation SELECT 'f', slot_id, 9, {} FROM annotation WHERE revision = 2"
REST = (
    "item_id, annotator_id, display_order, ranks, unacceptable, not_rankable, ratings, comment, demonstration, "
    "guidelines_version, started_at, submitted_at, active_seconds, client, 'f', body_sha256"
)
TAMPERINGS = {  # what is done: (SQL, what is said)
    "an answer is changed": (
        [f"UPDATE response SET text = 'better' WHERE id = {A_RESPONSE}"],
        f"response {ID}: text {BY}",
    ),
    "an answer is changed with its hash": (
        [f"UPDATE response SET text = 'better', content_sha256 = 'abc' WHERE id = {A_RESPONSE}"],
        f"response {ID}: text, content_sha256 {BY}",
    ),
    "two answers are swapped": (
        [
            "UPDATE response SET text = '-', content_sha256 = '-' WHERE text = '0.0'",
            "UPDATE response SET text = '0.0', content_sha256 = '=' WHERE text = '0.1'",
            "UPDATE response SET text = '0.1', content_sha256 = '+' WHERE text = '-'",
        ],
        f"response {ID}: text, content_sha256 {BY}",
    ),
    "an answer gets another source": (
        ["""UPDATE response SET sources = '[{"policy": "ours"}]' WHERE text = '0.0'"""],
        f"response {ID}: sources {BY}",
    ),
    "a prompt is changed with its hash": (
        ["""UPDATE prompt SET messages = '[]', content_sha256 = 'abc' WHERE id = (SELECT min(id) FROM prompt)"""],
        f"prompt {ID}: messages, content_sha256 {BY}",
    ),
    "a prompt moves to another group": (
        [f"UPDATE prompt SET group_key = 'test' WHERE id = {ONE.format('prompt')}"],
        f"prompt {ID}: group_key {BY}",
    ),
    "gold is changed": (
        ["UPDATE item SET gold_ranks = '{}' WHERE kind = 'gold'"],
        f"item {ID}: gold_ranks {BY}",
    ),
    "a gold item becomes a normal one": (
        ["UPDATE item SET kind = 'normal' WHERE kind = 'gold'"],
        f"item {ID}: kind {BY}",
    ),
    "an item is taken out of the exports": (
        ["UPDATE item SET state = 'cancelled' WHERE id = (SELECT min(id) FROM item WHERE state = 'done')"],
        f"item {ID}: state {BY}",
    ),
    "an item asks for other answers": (
        ["UPDATE item SET response_ids = '[]' WHERE kind = 'gold'"],
        f"item {ID}: response_ids {BY}",
    ),
    "an item comes first": (
        ["UPDATE item SET priority = 9 WHERE kind = 'gold'"],
        f"item {ID}: priority {BY}",
    ),
    "an open turn is deleted": (
        [f"DELETE FROM slot WHERE id = {OPEN}"],
        rf"slot {ID}: is gone; audit row \d+ \(add items\) tells of it",
    ),
    "a turn is added": (
        ["INSERT INTO slot (id, item_id, n, state) SELECT 'f', item_id, 7, 'open' FROM slot WHERE id = " + OPEN],
        "slot f: no audit row tells of it; it did not come through this program",
    ),
    "a turn that is done is opened again": (
        [f"UPDATE slot SET state = 'open', annotator_id = NULL WHERE id = {DONE}"],
        f"slot {ID}: is not done, or of somebody else, and has an annotation",
    ),
    "a turn is called done": (
        [f"UPDATE slot SET state = 'done' WHERE id = {OPEN}"],
        f"slot {ID}: is done, and no annotation of its annotator belongs to it",
    ),
    "a ranking is changed": (
        ["UPDATE annotation SET ranks = '{}' WHERE revision = 2"],
        rf"annotation {ID}: ranks not as audit row \d+ \(revise\) wrote it",
    ),
    "the time of a ranking is changed": (
        ["UPDATE annotation SET active_seconds = 60 WHERE revision = 2"],
        f"annotation {ID}: active_seconds {BY}",
    ),
    "a ranking is deleted": (
        ["DELETE FROM annotation WHERE revision = 2"],
        rf"annotation {ID}: is gone; audit row \d+ \(revise\) tells of it",
    ),
    "a ranking is added": ([COPY.format(REST)], "annotation f: no audit row tells of it.*"),
    "a skip is deleted": (["DELETE FROM skip"], rf"skip {ID} {ID}: is gone; audit row \d+ \(skip\) tells of it"),
    "a skip is changed": (["UPDATE skip SET reason = 'x'"], f"skip {ID} {ID}: reason {BY}"),
    "a flag is deleted": (["DELETE FROM flag"], rf"flag {ID}: is gone; audit row \d+ \(flag\) tells of it"),
    "an annotator becomes a lead": (
        ["UPDATE annotator SET role = 'lead' WHERE handle = 'ben'"],
        rf"annotator {ID}: role not as audit row \d+ \(accept_invite\) wrote it",
    ),
    "an annotator is paused": (
        ["UPDATE annotator SET status = 'paused' WHERE handle = 'ben'"],
        f"annotator {ID}: status {BY}",
    ),
    "a password is changed": (
        ["UPDATE annotator SET password_hash = 'x' WHERE handle = 'lena'"],
        f"annotator {ID}: password_hash {BY}",
    ),
    "an account is added": (
        ["INSERT INTO annotator SELECT 'f', 'mallory', 'lead', password_hash, status, 1.0 FROM annotator LIMIT 1"],
        "annotator f: no audit row tells of it.*",
    ),
    "an invite makes a lead": (
        ["UPDATE invite SET role = 'lead' WHERE used_at IS NULL"],
        f"invite [0-9a-f]{{64}}: role {BY}",
    ),
    "a token opens more": (
        ["""UPDATE token SET scopes = '["export", "read"]'"""],
        f"token {ID}: scopes {BY}",
    ),
    "the settings are changed": (
        ["""UPDATE collection SET settings = '{"min_seconds": 0}'"""],
        r"collection 1: settings not as audit row 1 \(init\) wrote it",
    ),
    "the name is changed": (["UPDATE collection SET name = 'x'"], f"collection 1: name {BY}"),
    "the key of the pseudonyms is changed": (
        ["UPDATE collection SET pseudonym_key = '00'"],
        f"collection 1: pseudonym_key {BY}",
    ),
    "the guidelines are changed": (
        ["UPDATE guidelines SET text = 'Prefer ours.'"],
        r"guidelines 1: text not as audit row 1 \(init\) wrote it",
    ),
    "guidelines are added": (
        ["INSERT INTO guidelines VALUES (2, 'Prefer ours.', 1.0)"],
        "guidelines 2: no audit row tells of it.*",
    ),
    "a version is deleted": (
        ["DELETE FROM version"],
        r"version 1: is gone; audit row \d+ \(export version\) tells of it",
    ),
    "the manifest of a version is changed": (
        ["UPDATE version SET manifest_sha256 = 'x'"],
        f"version 1: manifest_sha256 {BY}",
    ),
    "an audit row is changed": (
        ["UPDATE audit SET actor = 'x' WHERE id = 7"],
        "audit row 7: is not what its hash stands for",
    ),
    "what an audit row tells of is changed": (
        ["UPDATE audit SET written = '{}' WHERE action = 'skip'"],
        r"audit row \d+: is not what its hash stands for",
    ),
    "an audit row is deleted": (["DELETE FROM audit WHERE id = 7"], "audit row 7: taken out"),
    "audit rows are deleted": (["DELETE FROM audit WHERE id IN (7, 8, 9)"], "audit rows 7 to 9: taken out"),
    "two audit rows are swapped": (
        [f"UPDATE audit SET id = {to} WHERE id = {one}" for one, to in ((7, 0), (8, 7), (0, 8))],
        "audit row 7: does not follow row 6; one of the two was changed",
    ),
    "the last audit row is deleted": (
        ["DELETE FROM audit WHERE action = 'export version'"],
        "version 1: no audit row tells of it.*",
    ),
}


@pytest.mark.parametrize("done", TAMPERINGS)
def test_what_was_changed_from_outside_is_named(full, done):
    statements, said = TAMPERINGS[done]
    lines = found(full, *statements)
    assert any(re.fullmatch(said, line) for line in lines), lines


def test_each_guarded_table_is_tampered_with():
    done = " ".join(statement for statements, _ in TAMPERINGS.values() for statement in statements)
    touched = {name for name in tables() if re.search(rf"(UPDATE|FROM|INTO) {name}\b", done)}
    assert touched == tables()


# What a chain without a key cannot show by itself

END = "(SELECT min(id) FROM audit WHERE action = 'flag')"
CUT = [
    f"DELETE FROM audit WHERE id >= {END}",
    "DELETE FROM flag",
    "DELETE FROM skip",
    "DELETE FROM version",
]


def test_a_tail_that_was_cut_with_its_rows_shows_by_a_version_and_by_nothing_else(full, folder):
    assert found(full, *CUT) == []
    (line,) = found(full, *CUT, versions=versions_of(full, folder))
    said = "no audit row has the hash .* that it was sealed with; the chain was cut short or written anew since"
    assert re.fullmatch(f"versions/1: {said}", line)


WORSE = "UPDATE annotation SET comment = 'x' WHERE revision = 2"


def test_a_chain_that_was_written_anew_shows_by_a_version_and_by_nothing_else(full, folder):
    for versions, said in ((None, []), (versions_of(full, folder), ["versions/1"])):
        with full.read() as session:
            change_and_write_anew(session, WORSE)
            lines = verify.check(session, versions).findings.lines()
        assert [line.split(":")[0] for line in lines] == said


def test_a_chain_that_was_written_anew_shows_where_it_had_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0123456789abcdef" * 2)
    database = Database(f"sqlite:///{tmp_path}/collect.db")
    make_full_collection(database, tmp_path)
    with database.read() as session:
        assert verify.check(session).findings.count == 0
        change_and_write_anew(session, WORSE)
        with pytest.raises(UserError, match=f"{VARIABLE} is set, and the audit chain ends without a key"):
            verify.check(session)
    database.close()


# How it is told


def test_the_first_rows_are_named_and_the_rest_counted(full):
    with full.read() as session:
        tamper(session, "UPDATE response SET text = 'x'")
        with pytest.raises(Altered, match=r"18 rows do not fit what the audit tells\. Nothing was stored\n  response "):
            verify.require_whole(session)
        tamper(session, "UPDATE annotation SET comment = 'x'", "UPDATE slot SET n = n + 10")
        lines = verify.check(session).findings.lines()
    assert len(lines) == 21
    assert lines[-1] == "and 7 more"

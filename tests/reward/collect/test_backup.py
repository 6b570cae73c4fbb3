"""A backup: whole, checked, of a database that is in use."""

import shutil
import subprocess

import pytest
from collect_world import NOW, add_ranked_items

from reward.collect.integrity.backup import backup, program
from reward.collect.integrity.verify import require_whole
from reward.collect.refusals import Damaged
from reward.collect.store import audit
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotation
from rlhf.errors import UserError


@pytest.fixture
def sqlite(tmp_path, make_collection):
    return make_collection(f"sqlite:///{tmp_path}/collect.db")


def test_the_copy_of_sqlite_is_one_file_that_opens_with_all_annotations(sqlite, tmp_path):
    made = add_ranked_items(sqlite, 5)
    path, checked = backup(sqlite, tmp_path / "backups", NOW)
    assert [file.name for file in (tmp_path / "backups").iterdir()] == [path.name] == ["collect-19700112T134640Z.db"]
    copy = Database(f"sqlite:///{path}")
    with copy.read() as session:
        assert {one.id for one in session.query(Annotation)} == {one.id for one in made}
        assert require_whole(session).audit_rows == checked.audit_rows > 5
    copy.close()
    assert path.stat().st_mode & 0o077 == 0


def test_a_backup_is_of_what_was_committed_while_somebody_writes(sqlite, tmp_path):
    with sqlite.write() as session:
        one = audit.append(session, "ann", "one", "x", now=NOW)
    with sqlite.write() as session:
        audit.append(session, "ann", "two", "x", now=NOW)
        _, checked = backup(sqlite, tmp_path / "backups", NOW)
    assert checked.audit_rows == one.id


def test_a_database_whose_audit_was_changed_gives_no_backup(sqlite, tmp_path):
    add_ranked_items(sqlite, 2)
    with sqlite.write() as session:
        session.connection().exec_driver_sql("UPDATE audit SET actor = 'mallory' WHERE id = 2")
    with pytest.raises(UserError, match="audit row 2: is not what its hash stands for"):
        backup(sqlite, tmp_path / "backups", NOW)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_damaged_database_gives_no_backup(sqlite, tmp_path):
    add_ranked_items(sqlite, 60)
    sqlite.close()
    file = tmp_path / "collect.db"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    file.write_bytes(content)
    with pytest.raises(UserError, match="the copy is damaged"):
        backup(sqlite, tmp_path / "backups", NOW)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_database_that_was_cut_short_is_said_to_be_damaged(sqlite, tmp_path):
    add_ranked_items(sqlite, 60)
    sqlite.close()
    file = tmp_path / "collect.db"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(Damaged, match="database disk image is malformed"):
        backup(sqlite, tmp_path / "backups", NOW)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_backup_is_never_overwritten(sqlite, tmp_path):
    backup(sqlite, tmp_path, NOW)
    with pytest.raises(UserError, match="there is a backup of this second already"):
        backup(sqlite, tmp_path, NOW)


def test_a_folder_that_cannot_be_made_is_named(sqlite, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        backup(sqlite, tmp_path / "file" / "backups", NOW)


def test_the_dump_of_postgresql_restores_into_an_empty_database(postgres_url, make_collection, tmp_path):
    database = make_collection(postgres_url)
    made = add_ranked_items(database, 3)
    path, checked = backup(database, tmp_path, NOW)
    address = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    run = [program("pg_restore"), "--clean", "--if-exists", f"--dbname={address}", str(path)]
    with database.write() as session:
        session.connection().exec_driver_sql("DROP TABLE annotation CASCADE")
    subprocess.run(run, check=True, capture_output=True)
    with database.read() as session:
        assert session.query(Annotation).count() == len(made)
        assert require_whole(session).audit_rows == checked.audit_rows


def test_what_a_backup_of_postgresql_needs_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"pg_nothing is not installed, and a backup of PostgreSQL needs it"):
        program("pg_nothing")

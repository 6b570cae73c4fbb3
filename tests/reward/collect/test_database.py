"""The database: transactions that are whole or leave no trace, and what is refused before work is lost."""

from pathlib import Path

import pytest
from sqlalchemy import select

from reward.collect.integrity.findings import Altered
from reward.collect.integrity.verify import require_whole
from reward.collect.refusals import Damaged, Unavailable
from reward.collect.store.database import Database, parse_url, require_local_disk
from reward.collect.store.tables import Collection
from rlhf.errors import UserError


def test_what_is_written_is_read(database):
    with database.write() as session:
        session.get(Collection, 1).name = "renamed"
    with database.read() as session:
        assert session.scalar(select(Collection.name)) == "renamed"


def test_a_write_that_fails_leaves_no_trace(database):
    with pytest.raises(ZeroDivisionError), database.write() as session:
        session.get(Collection, 1).name = "renamed"
        session.flush()
        raise ZeroDivisionError
    with database.read() as session:
        assert session.scalar(select(Collection.name)) == "test"


def test_the_schema_of_this_release_is_accepted(database):
    database.require_schema()
    database.probe()


def test_an_empty_database_is_refused(database_url):
    with pytest.raises(UserError, match=r"holds no collection; make one with python -m reward.collect init"):
        Database(database_url).require_schema()


def test_a_newer_schema_is_refused(database):
    with database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UserError, match="schema 9999 is of a newer release than this one"):
        database.require_schema()


def test_a_lost_database_is_unavailable(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/nowhere/collect.db")
    with pytest.raises(Unavailable, match=r"the database does not answer \(unable to open database file\)"):
        database.probe()


MOUNTS = "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n/dev/sdb1 /home/local xfs rw 0 0\n"


def test_sqlite_on_a_network_file_system_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is on a network file system \(nfs4\), where SQLite loses data"):
        require_local_disk(Path("/home/team/collect.db"), MOUNTS)
    require_local_disk(Path("/home/local/collect.db"), MOUNTS)
    require_local_disk(Path("/var/collect.db"), MOUNTS)


def test_a_network_file_system_that_is_mounted_on_demand_is_refused():
    mounts = "/dev/sda1 / ext4 rw 0 0\nauto.team /team autofs rw 0 0\nserver:/team /team nfs4 rw 0 0\n"
    with pytest.raises(UserError, match="nfs4"):
        require_local_disk(Path("/team/collect.db"), mounts)


@pytest.mark.parametrize("url", ["mysql://me@host/x", "nonsense"])
def test_another_kind_of_database_is_refused(url):
    with pytest.raises(UserError, match="give sqlite:///PATH or postgresql://USER@HOST/NAME"):
        parse_url(url)


def test_a_password_is_not_shown(postgres_url):
    assert "secret" not in Database("postgresql://me:secret@localhost/x").shown()


@pytest.mark.parametrize("value, why", [("'{'", "a value that is no JSON"), ("CAST(x'7bff' AS TEXT)", "no UTF-8")])
def test_what_cannot_be_read_is_damage_and_verify_names_it(tmp_path, make_collection, value, why):
    database = make_collection(f"sqlite:///{tmp_path}/collect.db")
    with database.write() as session:
        session.connection().exec_driver_sql(f"UPDATE collection SET settings = {value}")
    with pytest.raises(Damaged, match=f"{why}; python -m reward.collect verify"), database.read() as session:
        session.get(Collection, 1)
    said = r"collection 1: settings not as audit row 1 \(write\) wrote it"
    with pytest.raises(Altered, match=said), database.read() as session:
        require_whole(session)

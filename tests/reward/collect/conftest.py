"""A database of each kind for the tests of the collection server: SQLite in a file, and a real PostgreSQL."""

import getpass
import glob
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy

from reward.collect.store.database import Database
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Collection, Guidelines


def postgres_programs() -> Path | None:
    """The folder with initdb and pg_ctl: on the PATH, or where Debian has them."""
    found = shutil.which("pg_ctl") or max(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"), default=None)
    return Path(found).parent if found else None


@pytest.fixture(scope="session")
def postgres():
    """The URL of a PostgreSQL server of the tests' own, on a socket. It waits for no disk: no test cuts the power."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    as_postgres = ["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []  # it refuses root
    if as_postgres:
        shutil.chown(folder, "postgres")
    run = lambda *command: subprocess.run([*as_postgres, *map(str, command)], check=True, capture_output=True, cwd="/")  # noqa: E731
    run(programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c max_connections=200 -c fsync=off"
    run(programs / "pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
    yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    run(programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres):
    """A fresh, empty database."""
    name = f"test{os.urandom(6).hex()}"
    server = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    yield postgres.replace("@/postgres?", f"@/{name}?")
    with server.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database_url(request, tmp_path):
    """The URL of a fresh database, of each kind in turn."""
    return f"sqlite:///{tmp_path}/collect.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def empty_tables(tmp_path_factory) -> Path:
    """A SQLite file with all tables, to be copied: making them takes ten times as long."""
    file = tmp_path_factory.mktemp("tables") / "collect.db"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


@pytest.fixture
def make_collection(empty_tables):
    """make_collection(url, overlap=2): a Database with all tables and a collection of these settings."""
    opened = []

    def make(url: str, **settings) -> Database:
        database = Database(url)
        opened.append(database)
        if database.is_sqlite and not Path(database.url.database).exists():
            shutil.copy(empty_tables, database.url.database)
        else:
            database.upgrade()
        settings = Settings(**{"agreement_share": 0.0, "gold_share": 0.0, **settings}).as_dict()
        names = {"name": "test", "seed": "00" * 16, "pseudonym_key": "11" * 16, "created_at": 0.0}
        with database.write() as session:
            session.add(Collection(id=1, settings=settings, **names))
            session.add(Guidelines(version=1, text="Prefer the *true* answer.", created_at=0.0))
        return database

    yield make
    for database in opened:
        database.close()


@pytest.fixture
def database(database_url, make_collection) -> Database:
    """A collection with the default settings, less gold items and second opinions, on each kind of database."""
    return make_collection(database_url)

"""A copy of a collection's database that was opened and checked before it counts. Works while the server runs."""

import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.engine import URL

from reward.collect.integrity.verify import Checked, require_whole
from reward.collect.refusals import Damaged
from reward.collect.store import private
from reward.collect.store.database import Database
from reward.collect.store.tables import Base
from rlhf.errors import UserError
from rlhf.files import sync, writing


def backup(database: Database, folder: Path, now: float, versions: Path | None = None) -> tuple[Path, Checked]:
    """Writes folder/collect-<time>.db (.dump for PostgreSQL); returns it and what was checked.

    versions: the folder of the collection's versions, whose seals the audit chain must hold.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    target = folder / f"collect-{stamp}.{'db' if database.is_sqlite else 'dump'}"
    if target.exists():
        raise UserError(f"{target}: there is a backup of this second already; wait one second")
    with writing(folder, "another --to"):
        private.make_folder(folder)
        with private.workspace(folder) as unfinished:
            copy = unfinished / target.name
            private.make_file(copy)
            make = copy_sqlite if database.is_sqlite else copy_postgres
            checked = make(database, copy, versions)
            sync(copy)
            os.replace(copy, target)
            sync(folder)
    return target, checked


def copy_sqlite(database: Database, copy: Path, versions: Path | None) -> Checked:
    """Copies the file page by page in one read transaction, then checks the copy."""
    source = sqlite3.connect(f"file:{database.url.database}?mode=ro", uri=True)
    try:
        with closing(source), closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # else what is written next lies in a file beside it
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a full disk, say
            raise UserError(f"the database cannot be copied ({error}); nothing was kept") from error
        raise Damaged(f"the database cannot be read ({error}). Nothing was stored") from error
    check_sqlite(copy)
    return check_copy(URL.create("sqlite", database=str(copy)), versions)


def check_sqlite(path: Path) -> None:
    """Raises UserError where SQLite finds the file damaged."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise Damaged(f"the copy is damaged ({found.splitlines()[0]}), and so may the database be; nothing was kept")


def check_copy(url: URL, versions: Path | None) -> Checked:
    """Raises Altered unless the copy's schema is ours and all its rows are what the audit tells."""
    copy = Database(url)
    try:
        copy.require_schema()
        with copy.read() as session:
            return require_whole(session, versions)
    finally:
        copy.close()


def copy_postgres(database: Database, copy: Path, versions: Path | None) -> Checked:
    """pg_dump of the very snapshot whose rows were checked, then read back as a whole.

    It is not restored: that what pg_restore reads back is what the snapshot held is PostgreSQL's word.
    """
    with database.read() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        checked = require_whole(session, versions)
        dump(database, copy, session.scalar(select(func.pg_export_snapshot())))
    return checked


def dump(database: Database, copy: Path, snapshot: str) -> None:
    """Writes the dump. The transaction that gave the snapshot is still open."""
    environment = {**os.environ, **({"PGPASSWORD": database.url.password} if database.url.password else {})}
    address = database.url.set(drivername="postgresql", password=None).render_as_string()
    what = ("--format=custom", f"--file={copy}", f"--snapshot={snapshot}", f"--dbname={address}")
    run(program("pg_dump"), *what, environment=environment)
    listing = run(program("pg_restore"), "--list", str(copy), environment=environment)
    held = {line.split("TABLE DATA")[1].split()[1] for line in listing.splitlines() if "TABLE DATA" in line}
    if missing := set(Base.metadata.tables) - held:
        raise UserError(f"the dump lacks the tables {', '.join(sorted(missing))}; nothing was kept")
    run(program("pg_restore"), f"--file={os.devnull}", str(copy), environment=environment)  # reads every row of it


def program(name: str) -> str:
    """PostgreSQL's program: on the PATH, or the newest that Debian has."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = shutil.which(name) or (str(debian[-1]) if debian else None)
    if found is None:
        raise UserError(f"{name} is not installed, and a backup of PostgreSQL needs it (Debian: postgresql-client)")
    return found


def run(*command: str, environment: dict[str, str]) -> str:
    """What a program prints. Raises UserError with its own first line of complaint."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        complaint = (done.stderr.strip().splitlines() or ["no word why"])[0]
        raise UserError(f"{Path(command[0]).name} failed ({complaint}); nothing was kept")
    return done.stdout

"""The database behind a collection: SQLite in its folder, or PostgreSQL by URL. Every write is one transaction.

SQLite: WAL, synchronous=FULL (what was acknowledged survives a power cut), and BEGIN IMMEDIATE for whatever may write,
since a read that turns into a write fails at once with "database is locked", whatever the timeout.
"""

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from reward.collect.refusals import Damaged, Refusal, Unavailable
from reward.collect.store import audit, private
from reward.collect.store.fair_lock import FairLock
from reward.collect.store.recording import RecordedSession
from rlhf.errors import UserError, first_line

NAMES_IT = "python -m reward.collect verify names its table and row"
ROOM = 2**20  # bytes that the disk must still take for the server to be ready
BUSY_SECONDS = 10  # that a writer waits for another
NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "afs",
    "9p",
    "fuse.sshfs",
    "glusterfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
}


class Database:
    """Transactions on one collection. read() never writes; write() commits at its end, or leaves no trace.

    A Refusal with keeps_writes is the one error that does not undo what was written before it.
    """

    def __init__(self, url: str | URL):
        self.url = parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgres_engine(self.url)
        self._writing = self.engine.execution_options(begin_immediate=True)
        self._turns = FairLock()

    @contextmanager
    def read(self) -> Iterator[Session]:
        with reachable(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        with reachable(), self._turn(), RecordedSession(self._writing, expire_on_commit=False) as session:
            try:
                yield session
            except Refusal as refusal:
                if refusal.keeps_writes:
                    _commit(session)
                raise
            _commit(session)

    def _turn(self):
        """SQLite has one writer at a time: those of this process wait in line."""
        return self._turns.held(BUSY_SECONDS) if self.is_sqlite else nullcontext()

    def close(self) -> None:
        self.engine.dispose()

    # Schema

    def revision(self) -> str | None:
        """Which schema the tables have; None where there are none."""
        with reachable(), self.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def upgrade(self) -> None:
        """Makes the tables, or brings those of an older release up to date. Refuses those of a newer one."""
        self.require_known(self.revision())
        with reachable(), self._writing.begin() as connection:
            command.upgrade(_alembic(connection), "head")

    def require_schema(self) -> None:
        """Raises UserError where the tables are not those of this release."""
        found, head = self.revision(), _scripts().get_current_head()
        if found is None:
            raise UserError(f"{self.shown()}: holds no collection; make one with python -m reward.collect init")
        self.require_known(found)
        if found != head:
            raise UserError(
                f"{self.shown()}: schema {found}, this release has {head}; python -m reward.collect init upgrades it"
            )

    def require_known(self, found: str | None) -> None:
        """Raises UserError for tables that this release can neither use nor upgrade."""
        if found is not None and found not in {script.revision for script in _scripts().walk_revisions()}:
            head = _scripts().get_current_head()
            raise UserError(
                f"{self.shown()}: schema {found} is of a newer release than this one ({head}); update the program, "
                "or choose another database where this one is another program's"
            )

    def probe(self) -> None:
        """Raises UserError unless a write can be committed and the schema is ours. For /readyz."""
        with self.write() as session:
            session.execute(text("UPDATE collection SET name = name"))
        if self.is_sqlite:
            require_room(Path(self.url.database))
        self.require_schema()

    def shown(self) -> str:
        """The database in a message, without its password."""
        return self.url.database if self.is_sqlite else self.url.render_as_string(hide_password=True)


def _commit(session: Session) -> None:
    audit.append_rest(session, time.time())
    session.commit()


def parse_url(url: str | URL) -> URL:
    """A database URL with the driver that we bring. Raises UserError for what is neither SQLite nor PostgreSQL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise UserError(
            f"database {str(url)!r} is no URL; give sqlite:///PATH or postgresql://USER@HOST/NAME"
        ) from None
    drivers = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
    name = parsed.drivername.split("+")[0]
    if name not in drivers:
        raise UserError(f"database {name}://: not supported; give sqlite:///PATH or postgresql://USER@HOST/NAME")
    if name == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(f"database {str(url)!r} names no file, and would be gone at the end; give sqlite:///PATH")
    return parsed.set(drivername=drivers[name])


@contextmanager
def reachable() -> Iterator[None]:
    """A lost or full database is Unavailable. Rules of ours that the database keeps stay what they are."""
    try:
        yield
    except IntegrityError:
        raise
    except (TimeoutError, PoolTimeout) as error:  # no turn to write, no connection
        raise Unavailable("the database is busy. Nothing was stored; try again") from error
    except OperationalError as error:  # locked, full, unreachable, read-only
        if "Could not decode" in str(error.orig):
            raise Damaged(f"the database holds a text that is no UTF-8; {NAMES_IT}") from error
        raise Unavailable(f"the database does not answer ({_reason(error)}). Nothing was stored; try again") from error
    except DBAPIError as error:
        if type(error) is DatabaseError:  # SQLite's word for a file that is damaged, or is none of its own
            raise Damaged(f"the database cannot be read ({_reason(error)}). Nothing was stored") from error
        if not error.connection_invalidated:
            raise
        raise Unavailable(f"the database was lost ({_reason(error)}). Nothing was stored; try again") from error


def _read_json(text: str):
    """The value in a JSON column."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise Damaged(f"the database holds a value that is no JSON; {NAMES_IT}") from error


def _reason(error: DBAPIError) -> str:
    """Why, without where the database is: visitors of the page read it too."""
    return re.sub(r"^connection .* failed: ", "", first_line(error.orig))


def _sqlite_engine(url: URL) -> Engine:
    require_local_disk(Path(url.database))
    connect_args = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    engine = create_engine(url, connect_args=connect_args, json_deserializer=_read_json)

    @event.listens_for(engine, "do_connect")
    def make_private(dialect, record, arguments, options) -> None:
        with suppress(OSError):  # of which SQLite speaks next
            private.make_file(Path(url.database))  # SQLite gives its other files the mode of this one

    @event.listens_for(engine, "connect")
    def configure(connection, record) -> None:
        connection.isolation_level = None  # else the driver begins transactions when it sees fit, deferred
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection) -> None:
        immediate = connection.get_execution_options().get("begin_immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _postgres_engine(url: URL) -> Engine:
    try:
        return create_engine(url, pool_pre_ping=True, pool_size=20, connect_args={"connect_timeout": BUSY_SECONDS})
    except ModuleNotFoundError:
        raise UserError('PostgreSQL needs psycopg: pip install -c constraints.txt -e ".[collect]"') from None


def require_room(path: Path) -> None:
    """Raises Unavailable where the disk of a SQLite file takes no more bytes: a small write of SQLite's own may still
    fit into room that it has.
    """
    trial = path.with_name(f"{path.name}.trial")
    try:
        with open(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0) as file:
            if file.write(bytes(ROOM)) < ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        raise Unavailable(f"the disk does not take {ROOM} more bytes ({error.strerror})") from None
    finally:
        trial.unlink(missing_ok=True)


def require_local_disk(path: Path, mounts: str | None = None) -> None:
    """Raises UserError for a SQLite file on a network file system, where its locks do not hold.

    mounts: the text of /proc/mounts; where there is none, nothing is known and nothing refused.
    """
    if mounts is None:
        table = Path("/proc/mounts")
        mounts = table.read_text() if table.exists() else ""
    entries = [line.split()[1:3] for line in mounts.splitlines()]
    folder = os.path.realpath(path.parent)
    holding = [entry for entry in entries if os.path.commonpath([folder, entry[0]]) == entry[0]]
    holding.reverse()  # of two mounts at one place the later one is seen: autofs has the real one put on top of it
    kind = max(holding, key=lambda entry: len(entry[0]))[1] if holding else ""
    if kind in NETWORK_FILE_SYSTEMS:
        raise UserError(
            f"{path}: is on a network file system ({kind}), where SQLite loses data; "
            "choose a local folder, or PostgreSQL by --database postgresql://..."
        )


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic())


def _alembic(connection=None) -> AlembicConfig:
    config = AlembicConfig(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    return config

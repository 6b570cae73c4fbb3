"""One writer at a time in a folder: a lock that says which process holds it, and that a dead process does not keep.

The lock is the operating system's (flock), on a file that names its holder and is there only while the lock is held.
What `kill -9` or a copied folder leaves of it is a file without a lock, which the next process takes over.
"""

import errno
import fcntl
import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any

from rlhf.console import say
from rlhf.errors import UserError
from rlhf.files import writing

LOCK = ".lock"
LOOK = 0.05  # seconds between looks at a lock that another process holds
# Who may not write here does no harm, and is told when it tries to; so is who takes a file for a folder.
CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
TAKEN = {errno.EAGAIN, errno.EACCES}
HELD: ContextVar[frozenset[Path]] = ContextVar("HELD", default=frozenset())  # run folders, by this thread


def alone_in_run_dir(run: Callable[..., Path]) -> Callable[..., Path]:
    """run(cfg, ...) that holds cfg.run.dir meanwhile. A preflight writes nothing and needs no lock.

    Inside, other stages of the same run.dir may run: those of a pipeline.
    """

    @wraps(run)
    def alone(cfg, *args: Any, **kwargs: Any) -> Path:
        folder = Path(os.path.abspath(cfg.run.dir))
        if cfg.preflight or folder in HELD.get():
            return run(cfg, *args, **kwargs)
        with _held_by_all(folder):
            return run(cfg, *args, **kwargs)

    return alone


@contextmanager
def _held_by_all(folder: Path) -> Iterator[None]:
    """Rank 0 takes the lock; where it cannot, every rank raises what it raises."""
    from rlhf.distributed import on_main  # torch, which a command of the collection does without

    with ExitStack() as exits:
        on_main(lambda: exits.enter_context(locked(folder, "choose another run.dir")))
        token = HELD.set(HELD.get() | {folder})
        exits.callback(lambda: HELD.reset(token))
        yield


@contextmanager
def locked(folder: Path, remedy: str, patience: float = 0.0, mode: int = 0o777) -> Iterator[None]:
    """Holds the folder. Raises UserError, which ends with the remedy, where another process still holds it after so
    many seconds of patience. mode: of the folder, where it has to be made."""
    path, is_new = Path(folder) / LOCK, not Path(folder).exists()
    file = _open_locked(path, remedy, time.monotonic() + patience, mode)
    try:
        yield
    finally:
        if file is not None:
            _release(path, file)
            if is_new:
                _remove_if_empty(path.parent)


def _open_locked(path: Path, remedy: str, until: float, mode: int) -> int | None:
    """A descriptor of the file, locked; None where the folder cannot be written, or its file system has no locks."""
    while (file := _open(path, mode)) is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_holder(file)
            os.close(file)
            if error.errno not in TAKEN:
                say(f"{path.parent}: no lock on this file system ({error.strerror}); let nothing else write there")
                return None
            if time.monotonic() > until:
                raise UserError(
                    f"{path.parent} is in use by {holder}; wait for its end, stop it, or {remedy}"
                ) from None
            time.sleep(LOOK)
            continue
        if _is_there(path, file):
            _write_holder(path, file)
            return file
        os.close(file)  # its holder removed it between our opening and locking it
    return None


def _open(path: Path, mode: int) -> int | None:
    with writing(path):
        try:
            path.parent.mkdir(mode, parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            return None
        with suppress(OSError):
            as_folder = path.parent.stat().st_mode & 0o666  # whoever may write there must be able to ask for the lock
            os.fchmod(file, as_folder)
        return file


def _is_there(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _release(path: Path, file: int) -> None:
    """Removes the file while its lock is held: nobody can take it for a lock then."""
    with suppress(OSError):
        if _is_there(path, file):
            path.unlink()
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor, too
    os.close(file)


def _remove_if_empty(folder: Path) -> None:
    """A refused run leaves nothing behind."""
    with suppress(OSError):
        folder.rmdir()


# ---- who holds it


def _write_holder(path: Path, file: int) -> None:
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": _command(),
    }
    try:
        with writing(path):
            os.truncate(file, 0)
            os.pwrite(file, json.dumps(holder).encode(), 0)
    except BaseException:
        _release(path, file)
        raise


def _command() -> str:
    """How this process was started, less passwords in URLs."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    words = ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]] if spec else sys.argv
    return re.sub(r"://[^/@\s]+@", "://...@", shlex.join(words))


def _read_holder(file: int) -> str:
    """The holder in words; "another process" in the moment before it has written who it is."""
    try:
        holder = json.loads(os.pread(file, 100_000, 0))
        place = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        return f"process {holder['process']}{place} since {holder['since']} ({holder['command']:.200})"
    except (ValueError, KeyError, TypeError):
        return "another process"

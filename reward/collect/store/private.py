"""Files and folders that nobody but their owner can read, from before the first byte is in them.

The database holds hashes of passwords and the collection's keys, exports and backups what people said. So modes are
given as things are made: a chmod afterwards leaves a moment, and a kill in that moment leaves it for ever.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

ELSEWHERE = "another --dir"  # where a folder of the collection's cannot be written
FILE, FOLDER, OTHERS = 0o600, 0o700, 0o077
# The second is how the first release named what was to become a backup
UNFINISHED = re.compile(r"\.unfinished-[0-9a-f]{32}|\.collect-\w+\.(db|dump)\.tmp(-journal)?")


def make_folder(folder: Path) -> None:
    """Makes it, and the folders above it as the system makes folders. One that is there stays as it is."""
    folder.mkdir(FOLDER, parents=True, exist_ok=True)


def make_file(path: Path) -> None:
    """An empty file. What is there stays as it is."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE))


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A stream into a file that is not there yet; all of it is on the disk at the end."""
    make_file(path)
    with open(path, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A new folder in this one for what is not finished: rename it, or what is in it, in the end; the rest is removed.

    Removes those that killed processes left. One that is in use is locked, and a lock ends with its process. Not to be
    used inside another one, which it would wait for.
    """
    unfinished = folder / f".unfinished-{uuid4().hex}"
    with _locked(folder):  # else another process could take the new one for a left one before it is locked
        remove_left(folder)
        unfinished.mkdir(FOLDER)
        lock = _lock(unfinished, wait=False)
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_left(folder: Path) -> None:
    """Removes what killed processes left in a folder. Those at work hold locks; without locks nothing is known."""
    for path in folder.iterdir():
        if UNFINISHED.fullmatch(path.name) and (lock := _lock(path, wait=False)) is not None:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(path: Path, wait: bool) -> int | None:
    """A descriptor that holds the lock until it is closed; None where another process has it, or there are no locks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def open_to_others(*paths: Path) -> list[Path]:
    """Which of these, or of what is directly in those that are folders, others on this machine can read."""
    inside = [path for folder in paths if folder.is_dir() for path in folder.iterdir()]
    files = [path for path in paths if path.is_file()]
    return [path for path in sorted(files + inside) if path.stat().st_mode & OTHERS]


def close_to_others(path: Path) -> None:
    """Takes a file, or a folder with all that is in it, from others."""
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        one.chmod(one.stat().st_mode & ~OTHERS)

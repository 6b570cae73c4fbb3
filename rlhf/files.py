"""Reading and writing files so that a fault names its place and a power cut leaves the old file or the new one."""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from rlhf.errors import ArtifactError, UserError

CANNOT_WRITE = {
    errno.ENOSPC: "no space left ({free} free); free some space or choose {elsewhere}",
    errno.EDQUOT: "the disk quota is used up; free some space or choose {elsewhere}",
    errno.EFBIG: "the limit on file size is reached (ulimit -f); raise it or choose {elsewhere}",
    errno.EACCES: "no write permission; choose {elsewhere} or change the folder's permissions",
    errno.EPERM: "no write permission; choose {elsewhere} or change the folder's permissions",
    errno.EROFS: "the file system is read-only; choose {elsewhere}",
    errno.ENOENT: "there is no such folder, and none can be made there; choose another one",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose {elsewhere}",
    errno.EEXIST: "it exists already and is not a folder; choose {elsewhere}",
}


@contextmanager
def writing(path: str | Path, elsewhere: str = "another run.dir") -> Iterator[None]:
    """Turns a full disk, a missing permission and the like into a UserError that names the path and the remedy.

    elsewhere: what the remedy says to choose; the collection has no run.dir.
    """
    try:
        yield
    except Exception as error:  # torch and safetensors report a full disk in their own ways
        reason = CANNOT_WRITE.get(_errno_of(error))
        if reason is None:
            raise
        place = error.filename if isinstance(error, OSError) and error.filename else path
        why = reason.format(free=_free_space(Path(path)), elsewhere=elsewhere)
        raise UserError(f"cannot write {place}: {why}. Results written earlier are untouched.") from error


def _errno_of(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors, tokenizers
    if rust:
        return int(rust.group(1))
    return errno.ENOSPC if "inline_container.cc" in str(error) else None


def _free_space(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    return f"{shutil.disk_usage(path).free / 1e6:,.0f} MB"


def write_durably(path: Path, text: str, elsewhere: str = "another run.dir") -> None:
    """Writes a text file under its final name only once all of it is on the disk."""
    temporary = temporary_name(path)
    with writing(path, elsewhere):
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # half a file, on what may be a full disk
            raise
        sync(path.parent)


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether the file is what a kill in the midst of `write_durably` left."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns a file that the system cannot read into an ArtifactError that names it."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        raise ArtifactError(
            f"{place}: cannot be read ({error.strerror}); see its permissions or copy it again"
        ) from error


def read_json(path: Path) -> Any:
    """The value in a strict JSON file. ArtifactError names the place of a fault."""
    return parse_json(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line ends as they are in it."""
    with reading(path):
        data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: byte {error.start} is not UTF-8; the file is damaged, copy it again") from error


def parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise ArtifactError(f"{place}: not valid JSON ({error.msg}); the file is damaged, copy it again") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}); the file is damaged, copy it again") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def plain(value: Any, not_finite: Callable[[float], Any] = str) -> Any:
    """A value as strict JSON can hold it: enums by value, scalars of numpy and torch as numbers, what else as text.

    not_finite: what stands for NaN and infinity, which JSON does not have.
    """
    if isinstance(value, dict):
        return {str(key): plain(item, not_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, not_finite) for item in value]
    if isinstance(value, Enum):
        return plain(value.value, not_finite)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return not_finite(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def nan_to_null(value: Any) -> Any:
    """A value as strict JSON can hold it, NaN and infinity as null."""
    return plain(value, not_finite=lambda number: None)

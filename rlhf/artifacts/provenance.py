"""Which code made an artifact: versions of the packages it depends on, and the commit."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "rlhf-stages")


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide the numbers; None where one is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_state(file: str | Path = __file__) -> dict | None:
    """{commit, dirty} of the checkout that holds this code; None where git does not track it."""
    folder = Path(file).parent
    tracked = _git(folder, "ls-files", "--error-unmatch", Path(file).name)
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if tracked is None or commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""Where a collection is unless told otherwise."""

import shlex
from pathlib import Path

DEFAULT_PORT = 8000
DEFAULT_FOLDER = Path("outputs/collect")
LOCAL = f"http://127.0.0.1:{DEFAULT_PORT}"


def naming(folder: Path) -> str:
    """What a command that is shown needs to mean this folder."""
    return "" if Path(folder) == DEFAULT_FOLDER else f" --dir {shlex.quote(str(folder))}"

"""Which artifacts are up to date, and where those go that are not."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf.artifacts.differences import differences
from rlhf.artifacts.manifest import (
    is_complete,
    load_manifest,
    verify,
)
from rlhf.errors import ArtifactError
from rlhf.files import plain, sync, writing
from rlhf.hashing import flat


def stale_reasons(
    stage_dir: str | Path, config: dict, data: list[dict], inputs: list[dict], rules: Sequence[dict] = ()
) -> list[str]:
    """Why a stage must run again, a sentence each; [] where its artifact is up to date. Arguments as in `commit`."""
    folder = Path(stage_dir)
    if not is_complete(folder):
        stopped = folder.is_dir() and any(folder.iterdir())
        return ["stopped before it finished" if stopped else "never ran"]
    try:
        manifest = verify(folder)
    except ArtifactError as error:
        return [str(error)]
    new = {"config": flat(config), "data": plain(data), "inputs": inputs, "rules": rules}
    return [str(difference) for difference in differences(manifest, new)]


def move_aside(stage_dir: str | Path) -> Path:
    """Moves an old artifact or a stopped attempt to <run.dir>/replaced/<stage>-<time>; returns its new place."""
    folder = Path(stage_dir)
    name = f"{folder.name}-{_made_at(folder)}"
    target, number = folder.parent / "replaced" / name, 1
    while target.exists():
        number += 1
        target = target.with_name(f"{name}-{number}")
    with writing(target.parent):
        target.parent.mkdir(exist_ok=True)
        os.rename(folder, target)
        sync(folder.parent)
    return target


def _made_at(folder: Path) -> str:
    """When an artifact was made, or a stopped attempt last changed, as part of a name: 20260101T093000Z."""
    try:
        return load_manifest(folder)["created"].replace("-", "").replace(":", "")
    except ArtifactError:
        return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(folder.stat().st_mtime))

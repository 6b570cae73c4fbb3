"""Folders that all ranks write into, and that count only once they are sealed.

The seal is manifest.json: size and sha256 of every file of all ranks. Rank 0 writes it last, when everything else is on
the disk; what a kill leaves behind has none. Both functions that seal and check are called by all ranks together, on a
file system that they share.
"""

import json
import shutil
import uuid
from pathlib import Path

from rlhf import distributed
from rlhf.errors import ArtifactError
from rlhf.files import read_json, reading, sync, write_durably, writing
from rlhf.hashing import file_sha256

SEAL = "manifest.json"
TRASH = ".trash-"


def seal(folder: Path) -> None:
    """Makes what all ranks have written into the folder count, once all of it is on the disk."""
    distributed.barrier()  # the last rank has closed its last file
    folder, mine = Path(folder), {}
    listing = distributed.on_main(lambda: _files_in(folder))  # one list: a network file system may show ranks others
    with distributed.failing_together(), writing(folder):
        for path in _my_part(listing):
            sync(path)
            mine[path.relative_to(folder).as_posix()] = _facts(path)
    facts = {name: value for part in distributed.gather(mine) for name, value in part.items()}
    distributed.on_main(lambda: _write_seal(folder, facts))


def check_sealed(folder: Path) -> None:
    """Raises ArtifactError on all ranks, naming the file, where the folder is not, to the bit, what was sealed."""
    folder = Path(folder)
    facts, listing = distributed.on_main(lambda: (_read_seal(folder), _files_in(folder)))
    with distributed.failing_together():
        present = {path.relative_to(folder).as_posix() for path in listing}
        for name in sorted(present ^ set(facts)):
            raise ArtifactError(f"{folder / name} {'was added later' if name in present else 'is gone'}")
        for path in _my_part(listing):
            with reading(path):
                found, expected = _facts(path), facts[path.relative_to(folder).as_posix()]
            if found != expected:
                raise ArtifactError(
                    f"{path} is not what was saved ({found['size']} bytes, sha256 {found['sha256'][:12]}; saved were "
                    f"{expected['size']}, {expected['sha256'][:12]})"
                )


def discard(folder: Path) -> None:
    """Removes a folder so that a kill leaves no part of it under its name. One rank alone calls it."""
    if folder.exists():
        with writing(folder):
            trash = folder.with_name(f"{TRASH}{folder.name}-{uuid.uuid4().hex[:8]}")
            folder.rename(trash)
            sync(folder.parent)
            shutil.rmtree(trash)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)


def _my_part(paths: list[Path]) -> list[Path]:
    return paths[distributed.rank() :: distributed.world_size()]


def _facts(path: Path) -> dict:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def _write_seal(folder: Path, facts: dict[str, dict]) -> None:
    with writing(folder):
        for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder, folder.parent]:
            sync(path)
    write_durably(folder / SEAL, json.dumps({"files": facts}, indent=1, sort_keys=True))


def _read_seal(folder: Path) -> dict[str, dict]:
    if not (folder / SEAL).exists():
        raise ArtifactError(f"{folder} has no {SEAL}: it was not saved to the end, or the file was removed")
    seal = read_json(folder / SEAL)
    facts = seal.get("files") if isinstance(seal, dict) else None
    well_formed = isinstance(facts, dict) and all(
        isinstance(value, dict) and value.keys() == {"size", "sha256"} for value in facts.values()
    )
    if not well_formed:
        raise ArtifactError(f"{folder / SEAL} does not list files with their size and sha256")
    return facts

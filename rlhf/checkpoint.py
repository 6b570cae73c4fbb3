"""Checkpoints that are either whole or not there.

A checkpoint is written to a staging folder, every file synced and hashed, and becomes `step-<n>` by one rename. A kill
at any moment leaves the previous checkpoint as it was. Loading walks from the newest to the oldest and takes the first
one whose hashes hold. Tensors are safetensors, the rest is JSON: nothing here can run code when it is read.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.errors import ArtifactError
from rlhf.files import sync, writing
from rlhf.hashing import file_sha256

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by part ("policy", "critic") and name. state: what else the run needs. step: steps that were done."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict


class Checkpoints:
    """The checkpoints of one stage, the newest `keep` of them."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict) -> Path:
        """Writes step-<step>; removes others only when it is complete."""
        with writing(self.folder):
            target = _commit(self.folder / f"step-{step:06d}", tensors, {"step": step, **state})
            found = self._by_age()  # newer ones than this were damaged: the run went on from before them
            kept = [path for path in found if path <= target][: self.keep]
            for path in set(found) - set(kept):
                shutil.rmtree(path)
        return target

    def load_latest(self, say=print) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none. Says which damaged ones it passed over."""
        found = self._by_age()
        for path in found:
            try:
                return _read(path)
            except ArtifactError as error:
                say(f"passing over a damaged checkpoint: {error}")
        if found:
            raise ArtifactError(
                f"{self.folder}: none of its {len(found)} checkpoints is whole; start again with run.resume=never"
            )
        return None

    def clear(self) -> None:
        """Removes all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _by_age(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def _commit(target: Path, tensors: dict[str, dict[str, Tensor]], state: dict) -> Path:
    staging = target.parent / f".staging-{target.name}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for part, values in tensors.items():
        save_file({name: value.contiguous() for name, value in values.items()}, staging / f"{part}.safetensors")
    (staging / "state.json").write_text(json.dumps(state))
    hashes = {path.name: file_sha256(path) for path in sorted(staging.iterdir())}
    (staging / MANIFEST).write_text(json.dumps({"files": hashes}))
    for path in [*staging.iterdir(), staging]:
        sync(path)
    if target.exists():  # a damaged checkpoint of this step that the run has just done again
        shutil.rmtree(target)
    os.rename(staging, target)
    sync(target.parent)
    return target


def _read(path: Path) -> Checkpoint:
    try:
        hashes = json.loads((path / MANIFEST).read_text())["files"]
        for name, expected in hashes.items():
            if file_sha256(path / name) != expected:
                raise ArtifactError(f"{path / name} is not what was saved (its sha256 differs)")
        state = json.loads((path / "state.json").read_text())
        tensors = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} cannot be read ({error})") from error
    return Checkpoint(state.pop("step"), tensors, state)

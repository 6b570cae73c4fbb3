"""Checkpoints that are either whole or not there, written by all ranks together.

A checkpoint is written to a staging folder, every file synced and hashed, and becomes `step-<n>` by one rename. A kill
at any moment leaves the previous checkpoint as it was. Loading walks from the newest to the oldest and takes the first
one whose hashes hold. Tensors are safetensors, the rest is JSON: nothing here can run code when it is read.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf.distributed import failing_together, is_main, on_main, rank
from rlhf.errors import ArtifactError
from rlhf.files import sync, writing
from rlhf.sealing import TRASH, check_sealed, discard_here, seal

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by part ("policy", "critic") and name. state: what else the run needs. step: steps that were done."""

    step: int
    tensors: dict[str, Mapping[str, Tensor]]
    state: dict


class Checkpoints:
    """The checkpoints of one stage, the newest `keep` of them. Every method is called by all ranks."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict) -> Path:
        """Writes step-<step>, each rank its own tensors of each part; removes others only when it is complete.

        state: taken from rank 0.
        """
        staging, target = self.folder / f".staging-step-{step:06d}", self.folder / f"step-{step:06d}"
        on_main(lambda: _make_empty(staging))
        with failing_together(), writing(staging):
            for part, values in tensors.items():
                if values or is_main():
                    whole = {name: value.contiguous() for name, value in values.items()}
                    save_file(whole, staging / f"{part}.{rank()}.safetensors")
            if is_main():
                (staging / STATE).write_text(json.dumps({"step": step, **state}))
        seal(staging)
        on_main(lambda: self._publish(staging, target))
        return target

    def load_latest(self, say=print) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none. Says which damaged ones it passed over."""
        path = self._newest_whole(say)
        return _read(path) if path else None

    def _publish(self, staging: Path, target: Path) -> None:
        with writing(self.folder):
            if target.exists():  # a damaged checkpoint of this step that the run has just done again
                discard_here(target)
            os.rename(staging, target)
            sync(self.folder)
            found = self._by_age()  # newer ones than this were damaged: the run went on from before them
            kept = [path for path in found if path <= target][: self.keep]
            for path in set(found) - set(kept):
                discard_here(path)
            for path in [*self.folder.glob(f"{TRASH}*"), *self.folder.glob(".staging-*")]:  # of a run that was killed
                shutil.rmtree(path)

    def _newest_whole(self, say) -> Path | None:
        found = on_main(self._by_age)
        for path in found:
            try:
                check_sealed(path)
                return path
            except ArtifactError as error:
                say(f"passing over a damaged checkpoint: {error}")
        if found:
            raise ArtifactError(
                f"{self.folder}: none of its {len(found)} checkpoints is whole; start again with run.resume=never"
            )
        return None

    def _by_age(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


class SavedTensors(Mapping):
    """The tensors of one part, each read when it is asked for: a rank never holds all of them at once."""

    def __init__(self, files: list[Path]):
        self._files = [safe_open(file, framework="pt") for file in files]
        self._file_of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name).clone()  # no map of a file that will be deleted

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _make_empty(folder: Path) -> None:
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / STATE).read_text())
    files: dict[str, list[Path]] = {}
    for file in sorted(path.glob("*.safetensors")):
        files.setdefault(file.name.split(".")[0], []).append(file)
    return Checkpoint(state.pop("step"), {part: SavedTensors(found) for part, found in files.items()}, state)

"""Checkpoints that are either whole or not there, written by all ranks together: the one road of all stages.

A checkpoint is written into a staging folder, synced, hashed and sealed there (sealing.py), and gets its name by one
rename. A kill at any moment leaves the checkpoints before it as they were. Loading walks from the newest to the oldest
and takes the first one that is, to the bit, what was sealed. What is inside is the stage's own: learner.py for PPO,
trainer.py for SFT and reward.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf.checkpoints.sealing import TRASH, check_sealed, discard, seal
from rlhf.distributed import on_main, rank
from rlhf.errors import ArtifactError
from rlhf.files import sync, writing

STAGING = ".staging"


class Checkpoints:
    """The checkpoints in one folder: the newest `keep`, and those that they need. All ranks call each public method.

    name: of a checkpoint's own folder, made of its step, as "step-{:06d}". needs: the checkpoint without which one is
    of no use; None where it stands alone.
    """

    def __init__(self, folder: Path, keep: int, name: str, needs: Callable[[Path], Path | None] = lambda path: None):
        self.folder, self.keep, self.name, self.needs = Path(folder), keep, name, needs
        self.staging = self.folder / STAGING

    def path(self, step: int) -> Path:
        return self.folder / self.name.format(step)

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """An empty folder for all ranks to write into; once they have, it becomes the checkpoint of this step.

        Others are removed only then.
        """
        staged = self.staging / self.path(step).name
        on_main(lambda: self._make_room(staged))
        yield staged
        seal(staged)
        on_main(lambda: self._publish(staged))

    def newest(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is whole, with the one that it needs; None where there is none.

        Says which damaged ones it passed over. Raises ArtifactError where all are.
        """
        found = on_main(self._newest_first)
        for path in found:
            try:
                self._check(path)
                return path
            except ArtifactError as error:
                say(f"passing over a damaged checkpoint: {error}")
        if found:
            raise ArtifactError(
                f"{self.folder}: none of its {len(found)} checkpoints is whole; start again with run.resume=never"
            )
        return None

    def _check(self, path: Path) -> None:
        check_sealed(path)
        needed = on_main(lambda: self.needs(path))
        if needed is not None:
            check_sealed(needed)

    def _make_room(self, staged: Path) -> None:
        """Removes what a killed run has left half written or half removed."""
        with writing(staged):
            for path in [*self.folder.glob(f"{STAGING}*"), *self.folder.glob(f"{TRASH}*")]:
                shutil.rmtree(path)
            staged.mkdir(parents=True)

    def _publish(self, staged: Path) -> None:
        target = self.folder / staged.name
        with writing(self.folder):
            if target.exists():  # a damaged checkpoint of this step that the run has just done again
                discard(target)
            os.rename(staged, target)
            sync(self.folder)
            for path in self._of_no_use(target):
                discard(path)
            self.staging.rmdir()

    def _of_no_use(self, newest: Path) -> list[Path]:
        """Newer ones, which were damaged, so that the run went on from before them; older ones that none needs.

        No older one where that cannot be told: what cannot be read now may be read when the run is to go on.
        """
        found = self._newest_first()
        newer = [path for path in found if step_of(path) > step_of(newest)]
        kept = [path for path in found if path not in newer][: self.keep]
        try:
            needed = [self.needs(path) for path in kept]
        except ArtifactError:
            return newer
        return [path for path in found if path not in kept and path not in needed]

    def _newest_first(self) -> list[Path]:
        """Folders that have the name of a checkpoint, and no others, such as a copy that somebody has put beside."""
        start = self.name.partition("{")[0]
        steps = {path.name.removeprefix(start) for path in self.folder.glob(f"{start}*")}
        newest_first = sorted((int(step) for step in steps if step.isdecimal()), reverse=True)
        return [path for path in map(self.path, newest_first) if path.is_dir()]


def step_of(checkpoint: str | Path | None) -> int:
    """Steps that a checkpoint holds, 0 for None."""
    return int(Path(checkpoint).name.split("-")[1]) if checkpoint else 0


def write_tensors(folder: Path, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes this rank's tensors of a part beside those of the others."""
    with writing(folder):
        whole = {name: value.contiguous() for name, value in tensors.items()}
        save_file(whole, folder / f"{part}.{rank()}.safetensors")


def read_tensors(folder: Path, part: str, start: str = "") -> "SavedTensors":
    """The tensors of a part, of all ranks that wrote there: those whose names start so."""
    return SavedTensors(sorted(folder.glob(f"{part}.*.safetensors")), start)


class SavedTensors(Mapping):
    """Tensors in files, each read when it is asked for: a rank never holds all of them at once."""

    def __init__(self, files: list[Path], start: str):
        opened = [safe_open(file, framework="pt") for file in files]
        self._file_of = {name: file for file in opened for name in file.keys() if name.startswith(start)}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._file_of[name].get_tensor(name).clone()  # no map of a file that will be deleted

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

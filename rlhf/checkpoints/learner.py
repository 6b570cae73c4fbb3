"""The checkpoints of PPO. Tensors are safetensors, the rest is JSON: nothing here can run code when it is read.

<folder>/step-<step>/
    policy.<rank>.safetensors, critic, best, ema   tensors by name, the ranks' shares of the names
    state.json                                     what else the run needs
    manifest.json                                  the seal (rlhf/checkpoints/sealing.py), written last
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rlhf.checkpoints.checkpoint import Checkpoints, SavedTensors, read_tensors, write_tensors
from rlhf.distributed import failing_together, is_main
from rlhf.files import writing

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by part ("policy", "critic") and name. state: what else the run needs. step: steps that were done."""

    step: int
    tensors: dict[str, SavedTensors]
    state: dict


class LearnerCheckpoints:
    """The newest `keep` checkpoints of PPO. Every method is called by all ranks."""

    def __init__(self, folder: Path, keep: int):
        self.checkpoints = Checkpoints(folder, keep, "step-{:06d}")

    def save(self, step: int, tensors: dict[str, Mapping[str, Tensor]], state: dict) -> None:
        """Writes the checkpoint of this step, each rank its own tensors of each part. state: taken from rank 0."""
        with self.checkpoints.saving(step) as folder, failing_together(), writing(folder):
            for part, values in tensors.items():
                if values or is_main():
                    write_tensors(folder, part, values)
            if is_main():
                (folder / STATE).write_text(json.dumps({"step": step, **state}))

    def load_latest(self, say=print) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none. Says which damaged ones it passed over."""
        path = self.checkpoints.newest(say)
        return _read(path) if path else None


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / STATE).read_text())
    parts = sorted({file.name.split(".")[0] for file in path.glob("*.safetensors")})
    return Checkpoint(state.pop("step"), {part: read_tensors(path, part) for part in parts}, state)

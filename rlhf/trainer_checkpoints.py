"""The checkpoints of transformers.Trainer, made safe: sealed when they are whole, verified before they are read.

<folder>/checkpoint-<step>/   what the Trainer and DeepSpeed write, every rank its own files
    saved_by.json             how many processes wrote it, with which ZeRO stage
    manifest.json             the seal (rlhf/sealing.py), written last
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rlhf import distributed
from rlhf.cli import say
from rlhf.errors import ArtifactError
from rlhf.files import read_json, write_durably
from rlhf.sealing import check_sealed, discard, discard_here, empty_trash, newest_sealed, seal

KEEP = 2  # the newest ones, and the best beside them
SAVED_BY = "saved_by.json"


def commit(folder: Path, best_step: int | None, writer: dict) -> None:
    """Seals a checkpoint that the Trainer has just written, then removes those that are no longer needed."""
    distributed.on_main(lambda: write_durably(folder / SAVED_BY, json.dumps(writer)))
    seal(folder)
    distributed.on_main(lambda: _rotate(folder.parent, best_step))


def last_checkpoint(folder: Path, writer: dict) -> str | None:
    """The newest whole checkpoint of such a writer, or None where there is none; unfinished ones are removed.

    Raises ArtifactError where all are damaged, or where another number of processes or ZeRO stage wrote it.
    """
    empty_trash(folder)
    found = distributed.on_main(lambda: _by_age(folder))
    newest = newest_sealed(found, say, _check_best)
    for path in found[: found.index(newest)] if newest else found:
        discard(path)  # the run does these steps again
    if newest is None:
        return None
    _require_same_writer(newest, writer)
    return str(newest)


def step_of(checkpoint: str | Path | None) -> int:
    """Steps that a checkpoint holds, 0 for None."""
    return int(Path(checkpoint).name.split("-")[1]) if checkpoint else 0


@contextmanager
def refusing_pickled_code() -> Iterator[None]:
    """Whatever torch loads meanwhile is data: a pickle that names anything else to call is an ArtifactError.

    DeepSpeed loads its own files without weights_only; they hold tensors and the classes named here.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch offers no other switch for loads in other people's code
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals(_classes_of_deepspeed()):
            yield
    except Exception as error:
        if "Weights only load failed" not in str(error):
            raise
        raise ArtifactError(
            f"a checkpoint holds more than tensors and was not read ({str(error).splitlines()[0]}); remove it, or "
            "start again with run.resume=never"
        ) from error
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def _classes_of_deepspeed() -> list:
    if not torch.distributed.is_initialized():
        return []
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def _by_age(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("checkpoint-*"), key=step_of, reverse=True)


def _rotate(folder: Path, best_step: int | None) -> None:
    found = _by_age(folder)
    for path in reversed(found[KEEP:]):
        if step_of(path) != best_step:
            discard_here(path)


def _check_best(checkpoint: Path) -> None:
    """A checkpoint is of use only while the best one that it refers to is whole."""
    best_step = read_json(checkpoint / "trainer_state.json")["best_global_step"]
    if best_step is not None and best_step != step_of(checkpoint):
        check_sealed(checkpoint.with_name(f"checkpoint-{best_step}"))


def _require_same_writer(checkpoint: Path, writer: dict) -> None:
    saved_by = read_json(checkpoint / SAVED_BY)
    if saved_by != writer:
        raise ArtifactError(
            f"{checkpoint} was saved with {_words(saved_by)}, and this run has {_words(writer)}; this stage cannot "
            "share it out anew, with run.reshard=true either: start it as before, or with run.resume=never"
        )


def _words(writer: dict) -> str:
    stage = writer["zero_stage"]
    return f"{writer['world_size']} process(es), {'no DeepSpeed' if stage is None else f'ZeRO stage {stage}'}"

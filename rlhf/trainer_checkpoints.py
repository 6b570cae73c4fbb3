"""The checkpoints of transformers.Trainer, made safe: sealed when they are whole, verified before they are read.

<folder>/checkpoint-<step>/
    training.<rank>.safetensors   trainable weights and Adam's state, each tensor whole, the ranks' shares of the names
    schedule.json                 the learning rate's scheduler
    trainer_state.json            what the Trainer and its callbacks remember
    rng_state*.pth                random numbers of each rank, read as data alone
    manifest.json                 the seal (rlhf/sealing.py), written last
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlhf import adam, distributed, zero
from rlhf.checkpoint import SavedTensors
from rlhf.console import say
from rlhf.files import read_json, write_durably, writing
from rlhf.sealing import check_sealed, discard, discard_here, empty_trash, newest_sealed, seal
from rlhf.seeding import generator

KEEP = 2  # the newest ones, and the best beside them
SCHEDULE = "schedule.json"


class PortableCheckpoints:
    """A mixin for trainers: any number of ranks, with DeepSpeed or without, can go on from their checkpoints.

    The Trainer and DeepSpeed would pickle each rank's part of the optimizer. The Trainer has no public way to save
    and load something else, hence the private names.
    """

    @property
    def engine(self):
        """DeepSpeed's engine, None without DeepSpeed and before training."""
        return self.model_wrapped if self.is_deepspeed_enabled and self.model_wrapped is not self.model else None

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The weights that training changes, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes weights and Adam's state: all that a checkpoint needs. The stage writes the model when it is done."""
        if self.engine is None:
            state = adam.tensors(self.optimizer, self.trained)
        else:
            state = zero.own_tensors(self.engine, self.trained)
        write_tensors(Path(output_dir or self.args.output_dir), state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = self.lr_scheduler.state_dict()
        distributed.on_main(lambda: write_durably(Path(output_dir) / SCHEDULE, json.dumps(state)))

    def _load_from_checkpoint(self, *args) -> None:
        """Nothing: weights are restored together with the optimizer, once there is one."""

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            self._restore(Path(resume_from_checkpoint))
        return prepared

    def _restore(self, checkpoint: Path) -> None:
        saved = read_tensors(checkpoint)
        if self.engine is None:
            adam.load_tensors(self.optimizer, self.trained, saved)
        else:
            zero.load_tensors(self.engine, self.trained, saved)
        self.lr_scheduler.load_state_dict(read_json(checkpoint / SCHEDULE))
        for group, learning_rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = learning_rate
        # A rank that has a file of its own goes on with its random numbers; others, of a reshard, begin anew.
        fresh = generator(self.args.seed, "dropout", step_of(checkpoint), self.args.process_index)
        torch.manual_seed(fresh.initial_seed())

    @torch.no_grad()
    def _load_best_model(self) -> None:
        saved = read_tensors(Path(self.state.best_model_checkpoint))
        for name, parameter in self.trained.items():
            if self.engine is None:
                parameter.copy_(saved[f"weight.{name}"])
            else:
                zero.set_full(self.engine, parameter, saved[f"weight.{name}"])


def write_tensors(folder: Path, state: dict[str, Tensor]) -> None:
    """Writes this rank's tensors beside those of the others."""
    distributed.on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
    with distributed.failing_together(), writing(folder):
        whole = {name: value.contiguous() for name, value in state.items()}
        save_file(whole, folder / f"training.{distributed.rank()}.safetensors")


def read_tensors(folder: Path) -> SavedTensors:
    """The tensors of all ranks that wrote there, each read when it is asked for."""
    return SavedTensors(sorted(folder.glob("training.*.safetensors")))


def commit(folder: Path, best_step: int | None) -> None:
    """Seals a checkpoint that the Trainer has just written, then removes those that are no longer needed."""
    seal(folder)
    distributed.on_main(lambda: _rotate(folder.parent, best_step))


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint, or None where there is none; unfinished ones are removed.

    Raises ArtifactError where all are damaged.
    """
    empty_trash(folder)
    found = distributed.on_main(lambda: _by_age(folder))
    newest = newest_sealed(found, say, _check_best)
    for path in found[: found.index(newest)] if newest else found:
        discard(path)  # the run does these steps again
    return str(newest) if newest else None


def step_of(checkpoint: str | Path | None) -> int:
    """Steps that a checkpoint holds, 0 for None."""
    return int(Path(checkpoint).name.split("-")[1]) if checkpoint else 0


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

"""The checkpoints of transformers.Trainer, for SFT and the reward model, on the road of all checkpoints.

<folder>/checkpoint-<step>/
    training.<rank>.safetensors   trainable weights and Adam's state, each tensor whole, the ranks' shares of the names
    schedule.json                 the learning rate's scheduler
    trainer_state.json            what the Trainer and its callbacks remember
    rng_state*.pth                random numbers of each rank, read as data alone
    manifest.json                 the seal (rlhf/checkpoints/sealing.py), written last
"""

import json
from pathlib import Path

import torch

from rlhf import distributed
from rlhf.checkpoints.checkpoint import Checkpoints, read_tensors, step_of, write_tensors
from rlhf.engines.training_state import put_back, take_out
from rlhf.errors import ArtifactError
from rlhf.files import read_json, write_durably, writing
from rlhf.seeding import generator

KEEP = 2  # the newest ones, and the best beside them
PART, SCHEDULE, STATE = "training", "schedule.json", "trainer_state.json"


def trainer_checkpoints(folder: Path | str) -> Checkpoints:
    """The checkpoints of a trainer, each with the best one up to it, whose weights become the model."""
    return Checkpoints(Path(folder), KEEP, "checkpoint-{}", best_before)


def best_before(checkpoint: Path) -> Path | None:
    """The checkpoint of the best weights so far, where that is another one."""
    state = read_json(checkpoint / STATE)
    if not isinstance(state, dict):
        raise ArtifactError(f"{checkpoint / STATE} is not what was saved: no JSON object")
    best_step = state.get("best_global_step")
    return None if best_step in (None, step_of(checkpoint)) else checkpoint.with_name(f"checkpoint-{best_step}")


class PortableCheckpoints:
    """A mixin for trainers: any number of ranks, with DeepSpeed or without, can go on from their checkpoints.

    The Trainer would write under the final name, and pickle each rank's part of the optimizer, as DeepSpeed would. It
    has no public way to save and load something else, hence the private names.
    """

    @property
    def checkpoints(self) -> Checkpoints:
        return trainer_checkpoints(self.args.output_dir)

    @property
    def engine(self):
        """DeepSpeed's engine, None without DeepSpeed and before training."""
        return self.model_wrapped if self.is_deepspeed_enabled and self.model_wrapped is not self.model else None

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The weights that training changes, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def holder(self):
        """What has Adam's state: the engine where there is one, else the optimizer."""
        return self.optimizer if self.engine is None else self.engine

    def _save_checkpoint(self, *args) -> None:
        with self.checkpoints.saving(self.state.global_step) as folder, writing(folder):
            super()._save_checkpoint(*args)
            self.name_best()
            distributed.on_main(lambda: self._write_state(folder))

    def _write_state(self, folder: Path) -> None:
        with writing(folder):
            self.state.save_to_json(folder / STATE)

    def _get_output_dir(self, trial) -> str:
        """Where the Trainer writes a checkpoint."""
        return str(self.checkpoints.staging)

    def name_best(self) -> None:
        """Gives the best checkpoint the path that it has now: the Trainer remembers that of the staging folder, and
        in a run that goes on that of its first folder, which may have been moved since."""
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self.checkpoints.path(self.state.best_global_step))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes weights and Adam's state: all that a checkpoint needs. The stage writes the model when it is done."""
        state = take_out(self.holder, self.trained)
        with distributed.failing_together():
            write_tensors(Path(output_dir or self.args.output_dir), PART, state)

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
        put_back(self.holder, self.trained, read_tensors(checkpoint, PART))
        self.name_best()
        self.lr_scheduler.load_state_dict(read_json(checkpoint / SCHEDULE))
        for group, learning_rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = learning_rate
        # A rank that has a file of its own goes on with its random numbers; others, of a reshard, begin anew.
        fresh = generator(self.args.seed, "dropout", step_of(checkpoint), self.args.process_index)
        torch.manual_seed(fresh.initial_seed())

    @torch.no_grad()
    def _load_best_model(self) -> None:
        weights = read_tensors(Path(self.state.best_model_checkpoint), PART, "weight.")
        put_back(self.holder, self.trained, weights)

"""What one rank of two does in test_distributed_training.py: many runs of stages one after the other, as starting two
processes takes longer than they do. `python -m rank_scenarios FOLDER WORLD`, ended by a kill.
"""

import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import tiny_world
import torch

from rlhf import distributed
from rlhf.engines import deepspeed_config
from rlhf.errors import ArtifactError, NumericsError, Stopped
from rlhf.run import cli
from rlhf.tracking import tracker as tracking
from stages import reward, sft

SHORT = ["sft.num_epochs=1", "reward.num_epochs=1", "reward.micro_batch_size=4", "sft.micro_batch_size=4"]  # 4 steps
LORA = ["adapter=lora", "adapter.dropout=0.0"]
# Dropout, bfloat16, and a stop between two lines of metrics: what must go on to the bit, and differs between ranks.
ROUGH = ["sft.dropout=0.1", "model.dtype=bfloat16", "tracking.log_steps=3"]


def runs(folder: Path) -> dict[str, tuple]:
    """Name -> stage module, ZeRO stage, overrides."""
    return {
        "zero1": (sft, 1, []),
        "zero2": (sft, 2, []),
        "zero3": (sft, 3, []),
        "rough": (sft, 2, ROUGH),
        "lora": (sft, 3, [*LORA, f"model.path={folder}/one/sft/model"]),
        **{f"reward{stage}": (reward, stage, [f"inputs.sft={folder}/one/sft"]) for stage in (1, 2, 3)},
        "lora-reward": (reward, 3, [*LORA, f"inputs.sft={folder}/one-lora/sft"]),
    }


STOPPED = ("zero1", "zero2", "zero3", "rough", "lora")


def config(folder: Path, world: Path, stage: int, *overrides: str):
    run = tiny_world.tiny_overrides(folder, world)
    return tiny_world.composed(*run, *SHORT, f"deepspeed=zero{stage}", *overrides, world_size=distributed.world_size())


def straight(folder: Path, world: Path) -> None:
    """Each run, into <name>/."""
    for name, (module, stage, overrides) in runs(folder).items():
        module.run(config(folder / name, world, stage, *overrides))


def stopped(folder: Path, world: Path) -> None:
    """The same into stopped-<name>/: a SIGTERM to rank 1 alone in step 3, then on to the end, on ZeRO 1 not on 2."""
    for name in STOPPED:
        module, stage, overrides = runs(folder)[name]
        cfg = config(folder / f"stopped-{name}", world, stage, *overrides)
        with signalled(3, signal.SIGTERM, ranks=[1]):
            with_its_error(Stopped, lambda module=module, cfg=cfg: module.run(cfg))
        if name == "zero1":
            other = replace(cfg, deepspeed=replace(cfg.deepspeed, zero_stage=2))
            with_its_error(ArtifactError, lambda other=other: sft.run(other))
        module.run(cfg)


def resharded(folder: Path, world: Path) -> None:
    """Goes on with what one process stopped."""
    sft.run(config(folder / "stopped-one", world, 3, "run.reshard=true"))


def bad_gradients(folder: Path, world: Path) -> None:
    """A loss that is finite and a gradient that is not, on rank 1 alone."""
    for stage in (2, 3):
        cfg = config(folder / f"nan{stage}", world, stage)
        with NotANumberGradient(on_rank=1):
            with_its_error(NumericsError, lambda cfg=cfg: sft.run(cfg))


def killed(folder: Path, world: Path) -> None:
    """Killed without warning in step 3, after the checkpoint of step 2."""
    with signalled(3, signal.SIGKILL, ranks=[0, 1]):
        sft.run(config(folder / "killed", world, 3))


def with_its_error(kind: type, call) -> None:
    """Writes down the error that must come."""
    try:
        call()
    except kind as error:
        print(f"rank {distributed.rank()}: {kind.__name__}: {error}", file=sys.stderr, flush=True)
    else:
        raise AssertionError(f"no {kind.__name__}")


@contextmanager
def signalled(step: int, number: signal.Signals, ranks: list[int]):
    """These ranks get a signal when this step is done."""
    kind = tracking.Tracker if distributed.is_main() else tracking.SilentTracker
    advance = kind.advance

    def advance_and_signal(self, done):
        advance(self, done)
        if done == step and distributed.rank() in ranks:
            signal.raise_signal(number)

    kind.advance = advance_and_signal
    try:
        yield
    finally:
        kind.advance = advance


class NotANumberGradient(torch.overrides.TorchFunctionMode):
    """Makes the gradient of every embedding lookup NaN."""

    def __init__(self, on_rank: int):
        super().__init__()
        self.acts = distributed.rank() == on_rank

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if self.acts and function is torch.nn.functional.embedding and result.requires_grad:
            result.register_hook(lambda gradient: gradient * float("nan"))
        return result


if __name__ == "__main__":
    distributed.start()
    cli.quieten_libraries()
    # Weights as small as these would be whole on every rank, and gathered all at once.
    deepspeed_config.PERSISTENT, deepspeed_config.LIVE, deepspeed_config.BUCKET = 0, 0, 500
    for scenario in (straight, stopped, resharded, bad_gradients, killed):
        scenario(Path(sys.argv[1]), Path(sys.argv[2]))

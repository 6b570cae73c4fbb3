"""What one rank of two does in test_distributed_training.py: several runs of stages one after the other, as starting
two processes takes longer than they do. `python -m rank_scenarios SCENARIO FOLDER WORLD`, ended by a kill or with 0.
"""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import tiny_world
import torch

from rlhf import cli, distributed
from rlhf.errors import ArtifactError, NumericsError
from stages import reward, sft

ZERO = (1, 2, 3)


def config(folder: Path, world: Path, stage: int, *overrides: str):
    run = tiny_world.tiny_overrides(folder, world)
    return tiny_world.composed(*run, f"deepspeed=zero{stage}", *overrides, world_size=distributed.world_size())


def variants(folder: Path, world: Path, kind: str):
    """(name, stage module, config) of the runs that are stopped and go on; the last one is killed."""
    base = f"model.path={folder}/one/sft/model"
    long = ["num_epochs=12", "micro_batch_size=4", "patience=50"]
    sft_long = [f"sft.{option}" for option in long]
    reward_long = [*(f"reward.{option}" for option in long), f"inputs.sft={folder}/lora-base/sft"]
    odd = "tracking.log_steps=3"  # a stop falls between two lines of metrics
    runs = {
        "zero1": (sft, 1, ["sft.dropout=0.1", odd, *sft_long]),
        "zero2": (sft, 2, ["sft.dropout=0.1", odd, *sft_long]),
        "lora": (sft, 2, ["adapter=lora", "adapter.dropout=0.1", odd, base, *sft_long]),
        "lora-reward": (reward, 2, ["adapter=lora", "adapter.dropout=0.1", odd, base, *reward_long]),
        "zero3": (sft, 3, ["sft.dropout=0.1", odd, *sft_long]),
    }
    return [
        (name, module, config(folder / f"{kind}-{name}", world, stage, *overrides))
        for name, (module, stage, overrides) in runs.items()
    ]


def short_runs(folder: Path, world: Path) -> None:
    """SFT and reward on each ZeRO stage, into zero<stage>/; an SFT adapter into lora-base/."""
    for stage in ZERO:
        cfg = config(folder / f"zero{stage}", world, stage, f"inputs.sft={folder}/one/sft")
        sft.run(cfg)
        reward.run(cfg)
    sft.run(config(folder / "lora-base", world, 2, "adapter=lora", f"model.path={folder}/one/sft/model"))


def long_runs(folder: Path, world: Path) -> None:
    """Uninterrupted, into long-<name>/."""
    for _, module, cfg in variants(folder, world, "long"):
        module.run(cfg)


def stopped_runs(folder: Path, world: Path) -> None:
    """The same into stopped-<name>/: SIGTERM to rank 1 alone, after a few steps; the last by SIGKILL to both."""
    for name, module, cfg in variants(folder, world, "stopped"):
        stage = "reward" if module is reward else "sft"
        seal = folder / f"stopped-{name}" / stage / "checkpoints" / "checkpoint-4" / "manifest.json"
        if name == "zero3":
            when_exists(seal, signal.SIGKILL)
        elif distributed.rank() == 1:
            when_exists(seal, signal.SIGTERM)
        try:
            module.run(cfg)
        except cli.Stopped as stop:
            print(f"rank {distributed.rank()}: {stop}", file=sys.stderr, flush=True)


def resumed_runs(folder: Path, world: Path) -> None:
    """Goes on with stopped-<name>/; with another ZeRO stage it is refused."""
    for name, module, cfg in variants(folder, world, "stopped"):
        if name == "zero1":
            try:
                module.run(replace(cfg, deepspeed=replace(cfg.deepspeed, zero_stage=2)))
            except ArtifactError as error:
                print(f"refused: {error}", file=sys.stderr, flush=True)
        module.run(cfg)


def bad_gradients(folder: Path, world: Path) -> None:
    """A loss that is finite and a gradient that is not, on rank 1 alone."""
    for stage in ZERO:
        cfg = config(folder / f"nan{stage}", world, stage)
        try:
            with NotANumberGradient(on_rank=1):
                sft.run(cfg)
        except NumericsError as error:
            print(f"rank {distributed.rank()} zero {stage}: {error}", file=sys.stderr, flush=True)


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


def when_exists(path: Path, number: signal.Signals) -> None:
    """Sends this process a signal a moment after a file appears."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    distributed.start()
    cli._quieten_libraries()
    for name in sys.argv[1].split(","):
        globals()[name](Path(sys.argv[2]), Path(sys.argv[3]))

"""The processes (ranks) of one run, and what they tell each other. With one process every function is a no-op.

Every rank calls each of these functions equally often and in the same order.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rlhf.errors import RlhfError

T = TypeVar("T")


def launched_world_size() -> int:
    """Processes that the launcher started for this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, 0 to world_size - 1. Known before `start`."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes that have met in `start`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which alone writes files, shows progress and speaks to W&B."""
    return rank() == 0


def start() -> None:
    """Meets the other ranks: NCCL between GPUs, gloo between CPUs. One process without a launcher meets itself."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ.update(alone)
    import deepspeed

    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def barrier() -> None:
    """Waits until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def gather(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(call: Callable[[], T]) -> T:
    """What call() returns on rank 0, on every rank; the error that it raises there, too."""
    if world_size() == 1:
        return call()
    outcome: list[Any] = [None, None]
    if is_main():
        with _noting(outcome):
            outcome[0] = call()
    dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def failing_together():
    """An error that one rank meets inside is raised on all of them. Nothing inside may wait for another rank."""
    outcome: list[Any] = [None, None]
    with _noting(outcome):
        yield
    errors = [(number, error) for number, error in enumerate(gather(outcome[1])) if error is not None]
    if errors:
        number, error = errors[0]
        raise type(error)(f"{error}" if world_size() == 1 else f"rank {number}: {error}") from outcome[1]


@contextmanager
def _noting(outcome: list):
    try:
        yield
    except RlhfError as error:
        outcome[1] = error


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return any(gather(flag))


def share(values: Sequence[T]) -> list[T]:
    """This rank's contiguous part of values: the same number on every rank, the last value repeated where they run out."""
    size = share_size(len(values))
    part = list(values[rank() * size : (rank() + 1) * size]) if world_size() > 1 else list(values)
    return part + [values[-1]] * (size - len(part))


def share_size(total: int) -> int:
    """How many of `total` values each rank gets from `share`."""
    return -(-total // world_size())

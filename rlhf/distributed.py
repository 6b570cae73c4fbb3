"""The processes (ranks) of one run, and what they tell each other. With one process every function is a no-op.

Every rank calls each of these functions equally often and in the same order.
"""

import logging
import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.errors import RlhfError
from rlhf.ranks import is_main as is_main
from rlhf.ranks import launched_world_size as launched_world_size
from rlhf.ranks import rank as rank

T = TypeVar("T")


def world_size() -> int:
    """Processes that have met in `start`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def start() -> None:
    """Meets the other ranks: NCCL between GPUs, gloo between CPUs. One process without a launcher meets itself."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ.update(alone)
    os.environ.setdefault("DEEPSPEED_TIMEOUT", "30")  # minutes, in which rank 0 must have written and hashed a model
    import deepspeed

    # Only inference uses this kernel of CPU ranks. DeepSpeed would compile it at the first start, for minutes, and wait
    # for ever where a compilation was killed. There is no public switch.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # every rank warns; what matters is checked where it matters
    # The groups that DeepSpeed makes for ZeRO take no timeout from it, and torch's own is half an hour on CPUs.
    dist.distributed_c10d.default_pg_timeout = deepspeed.constants.default_pg_timeout  # DEEPSPEED_TIMEOUT, in minutes
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def leave() -> None:
    """Parts from the other ranks, at the clean end of a run.

    Else gloo's threads, which still hold tensors, now and then abort the interpreter as it ends
    (https://github.com/pytorch/pytorch/pull/179291). After an error it could wait for a rank that does not come.
    """
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


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
        outcome[1].is_on_all_ranks = True
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
        failure = type(error)(f"{error}" if world_size() == 1 else f"rank {number}: {error}")
        failure.is_on_all_ranks = True
        raise failure from outcome[1]


@contextmanager
def _noting(outcome: list):
    try:
        yield
    except RlhfError as error:
        outcome[1] = error


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return bool(over_ranks(torch.tensor([float(flag)]), "max")[0])


def over_ranks(values: Tensor, how: str = "sum") -> Tensor:
    """The sum, or the maximum ("max"), of the ranks' values, element by element."""
    if world_size() == 1:
        return values
    result = values.to(_device(), copy=True)
    dist.all_reduce(result, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[how])
    return result.to(values.device)


def broadcast(values: Tensor) -> None:
    """Writes rank 0's values over those of the other ranks."""
    if world_size() > 1:
        dist.broadcast(values, 0)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of every rank below one another, in the order of ranks. All ranks give as many. [b, ...] -> [B, ...]"""
    if world_size() == 1:
        return rows
    own = (rows.byte() if rows.dtype is torch.bool else rows).contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts).to(rows.dtype)


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def own_places(total: int) -> range:
    """Places of this rank's part of `total` things. All parts are equally long: the last may reach beyond the end."""
    size = -(-total // world_size())
    number = rank() if world_size() > 1 else 0
    return range(number * size, (number + 1) * size)

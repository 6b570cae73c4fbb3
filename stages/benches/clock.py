"""What each phase of an iteration takes: seconds, memory, and positions that the models compute."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf.preflight.memory import on_gpu
from stages.benches.limits import synchronize
from stages.benches.memory import resident


@dataclass(frozen=True)
class Cost:
    """peak: bytes in memory at most, all of the process on a CPU, all of torch's on a GPU. positions: that models
    computed; tokens: those of them that are no padding."""

    seconds: float
    cpu_seconds: float
    peak: int
    positions: int
    tokens: int

    @property
    def padding(self) -> float:
        """The share of the positions that is padding."""
        return 1 - self.tokens / self.positions if self.positions else 0.0


class Clock:
    """Costs by phase; a phase lasts until the next begins. embeddings: of the models, each once; pad_id: no token."""

    def __init__(self, embeddings: Iterable[nn.Module], pad_id: int):
        self.pad_id, self.costs, self.phase = pad_id, {}, None
        for embedding in embeddings:
            embedding.register_forward_pre_hook(self._count)

    def begin(self, phase: str) -> None:
        """Ends the phase before, if there is one."""
        self.end()
        reset_peak()
        self.phase, self.positions, self.tokens = phase, 0, 0
        self.began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        if self.phase is None:
            return
        synchronize()
        wall, cpu = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        self.costs[self.phase] = Cost(wall, cpu, peak(), self.positions, int(self.tokens))
        self.phase = None

    def taken(self) -> dict[str, Cost]:
        """The costs so far, which are forgotten."""
        self.end()
        costs, self.costs = self.costs, {}
        return costs

    def _count(self, embedding: nn.Module, inputs: tuple[Tensor]) -> None:
        if self.phase is not None:
            self.positions += inputs[0].numel()
            self.tokens += (inputs[0] != self.pad_id).sum()  # stays on its device: a GPU need not wait


def reset_peak() -> None:
    """Makes `peak` begin anew."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS, see proc(5)


def peak() -> int:
    return torch.cuda.max_memory_allocated() if on_gpu() else resident("VmHWM")

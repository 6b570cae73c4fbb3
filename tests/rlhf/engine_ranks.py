"""What one rank does in test_engine.py: a few steps of a small model on each ZeRO stage.

The same steps are made from the same data on any number of ranks; what rank 0 finds is written as JSON.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from rlhf import distributed
from rlhf.checkpoints.learner import LearnerCheckpoints
from rlhf.engines.engine import DeepspeedEngine
from rlhf.errors import NumericsError

BATCH, NUM_STEPS, MAX_GRAD_NORM = 8, 3, 0.5
STAGES = (0, 1, 2, 3)


def model(dtype=torch.float32) -> torch.nn.Module:
    """Odd sizes, so that shares are padded."""
    torch.manual_seed(0)
    layers = (torch.nn.Linear(7, 13), torch.nn.Tanh(), torch.nn.Linear(13, 5), torch.nn.Linear(5, 1, bias=False))
    return torch.nn.Sequential(*layers).to(dtype)


def batch(step: int) -> torch.Tensor:
    return torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(step))


def engine(stage: int, dtype=torch.float32) -> DeepspeedEngine:
    options = SimpleNamespace(zero_stage=stage, offload=False)
    return DeepspeedEngine("model", model(dtype), 1e-2, 1e-5, MAX_GRAD_NORM, options, 1)


def train(engine, steps, micro_batch_size: int, loss_scale: float = 1.0) -> list[float]:
    """The norm of each step's gradient: of the mean of squares over the whole batch, in this rank's micro-batches."""
    norms = []
    for step in steps:
        own = batch(step)[list(distributed.own_places(BATCH))]
        parts = own.split(micro_batch_size)
        for number, part in enumerate(parts):
            output = engine(part.to(next(iter(engine.parameters.values())).dtype)).float()
            engine.backward(loss_scale * (output**2).sum() / BATCH, number == len(parts) - 1)
        norms.append(engine.step())
    return norms


def plain(weights: dict) -> dict:
    return {name: value.double().flatten().tolist() for name, value in weights.items()}


def steps_on_each_stage(folder: Path) -> dict:
    found = {}
    for stage in STAGES:
        for micro_batch_size in (1, BATCH // distributed.world_size()):
            own = engine(stage)
            norms = train(own, range(NUM_STEPS), micro_batch_size)
            found[f"zero{stage}/micro{micro_batch_size}"] = {"norms": norms, "weights": plain(own.weights())}
    return found


def saved_and_gone_on(folder: Path) -> dict:
    """Straight through, against saved after two steps and gone on in a fresh engine: the weights of both, on rank 0."""
    found = {}
    for name, stage, dtype in [*((f"zero{s}", s, torch.float32) for s in STAGES), ("bfloat16", 2, torch.bfloat16)]:
        own = engine(stage, dtype)
        checkpoints = LearnerCheckpoints(folder / f"{distributed.world_size()}-{name}", keep=1)
        train(own, range(2), 2)
        checkpoints.save(2, {"model": own.tensors()}, {})
        train(own, range(2, 5), 2)
        other = engine(stage, dtype)
        other.load_tensors(checkpoints.load_latest().tensors["model"])
        train(other, range(2, 5), 2)
        found[name] = [plain(own.weights()), plain(other.weights())]
    return found


def gone_on_with_the_checkpoint_of_two_ranks(folder: Path) -> dict:
    found = {}
    for stage in STAGES:
        own = engine(stage)
        own.load_tensors(LearnerCheckpoints(folder / f"2-zero{stage}", keep=1).load_latest().tensors["model"])
        train(own, range(2, 5), 2)
        found[f"zero{stage}"] = plain(own.weights())
    return found


def not_a_number(folder: Path) -> dict:
    """A loss that is NaN on the last rank alone: what is raised on every rank, and whether any weight changed."""
    found = {}
    for stage in STAGES:
        own = engine(stage)
        before = plain(own.weights())
        scale = float("nan") if distributed.rank() == distributed.world_size() - 1 else 1.0
        try:
            train(own, range(1), 2, scale)
            raised = ""
        except NumericsError as error:
            raised = str(error)
        found[f"zero{stage}"] = {"raised": distributed.gather(raised), "unchanged": plain(own.weights()) == before}
    return found


if __name__ == "__main__":
    distributed.start()
    place = Path(sys.argv[1])
    for task in sys.argv[2].split(","):
        result = globals()[task](place)
        if distributed.is_main():
            (place / f"{task}-{distributed.world_size()}.json").write_text(json.dumps(result))
    distributed.leave()

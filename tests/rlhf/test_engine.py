"""Engines: one step is the same step in one process, in several, and on every ZeRO stage."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import engine_ranks
import pytest
import torch

from rlhf.engines.engine import TorchEngine
from rlhf.errors import NumericsError

pytestmark = pytest.mark.slow

STAGES = [f"zero{stage}" for stage in engine_ranks.STAGES]


def run_ranks(number: int, folder: Path, tasks: str) -> None:
    """engine_ranks.py as so many real gloo ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    common = {**os.environ, **meeting, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, engine_ranks.__file__, str(folder), tasks]
    processes = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(number)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """found(task, ranks): what rank 0 found."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(2, folder, "steps_on_each_stage,saved_and_gone_on,not_a_number")
    run_ranks(1, folder, "steps_on_each_stage,gone_on_with_the_checkpoint_of_two_ranks")
    return lambda task, ranks: json.loads((folder / f"{task}-{ranks}.json").read_text())


@pytest.fixture(scope="module")
def expected():
    """(norms, weights) of torch's own AdamW in float64, each gradient taken of the whole batch at once."""
    model = engine_ranks.model(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-5, weight_decay=0.0)
    norms = []
    for step in range(engine_ranks.NUM_STEPS):
        optimizer.zero_grad()
        (model(engine_ranks.batch(step).double()) ** 2).mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), engine_ranks.MAX_GRAD_NORM).item())
        optimizer.step()
    return norms, engine_ranks.plain(dict(model.named_parameters()))


def assert_close(weights: dict, others: dict, tolerance: float) -> None:
    assert weights.keys() == others.keys()
    for name, values in weights.items():
        assert values == pytest.approx(others[name], abs=tolerance), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_micro_batch_of_every_rank_counts(found, expected, ranks, stage):
    """ZeRO 1 and 2 drop all micro-batches but the last one where DeepSpeed is not told that more follow."""
    norms, weights = expected
    for micro_batch_size in (1, engine_ranks.BATCH // ranks):
        result = found("steps_on_each_stage", ranks)[f"{stage}/micro{micro_batch_size}"]
        assert result["norms"] == pytest.approx(norms, rel=1e-5)
        assert_close(result["weights"], weights, 1e-5)


def test_plain_pytorch_makes_the_same_steps(expected):
    engine = TorchEngine("model", engine_ranks.model(), 1e-2, 1e-5, engine_ranks.MAX_GRAD_NORM)
    assert engine_ranks.train(engine, range(engine_ranks.NUM_STEPS), 2) == pytest.approx(expected[0], rel=1e-5)
    assert_close(engine_ranks.plain(engine.weights()), expected[1], 1e-5)


@pytest.mark.parametrize("stage", [*STAGES, "bfloat16"])
def test_two_ranks_go_on_from_a_checkpoint_to_the_last_bit(found, stage):
    straight, resumed = found("saved_and_gone_on", 2)[stage]
    assert straight == resumed


@pytest.mark.parametrize("stage", STAGES)
def test_one_process_goes_on_from_the_checkpoint_of_two_ranks(found, stage):
    straight, _ = found("saved_and_gone_on", 2)[stage]
    assert_close(found("gone_on_with_the_checkpoint_of_two_ranks", 1)[stage], straight, 1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_on_one_rank_stops_all_ranks_before_a_weight_changes(found, stage):
    result = found("not_a_number", 2)[stage]
    assert result["raised"] == ["the gradient of the model is not finite; its weights were left as they were"] * 2
    assert result["unchanged"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_pytorch_goes_on_from_a_checkpoint_to_the_last_bit(tmp_path, dtype):
    from rlhf.checkpoints.learner import LearnerCheckpoints

    engines = [TorchEngine("model", engine_ranks.model(dtype), 1e-2, 1e-5, 0.5) for _ in range(2)]
    engine_ranks.train(engines[0], range(2), 2)
    checkpoints = LearnerCheckpoints(tmp_path, keep=1)
    checkpoints.save(2, {"model": engines[0].tensors()}, {})
    engines[1].load_tensors(checkpoints.load_latest().tensors["model"])
    for engine in engines:
        engine_ranks.train(engine, range(2, 5), 2)
    assert engine_ranks.plain(engines[0].tensors()) == engine_ranks.plain(engines[1].tensors())


def test_plain_pytorch_stops_at_nan_before_a_weight_changes():
    engine = TorchEngine("model", engine_ranks.model(), 1e-2, 1e-5, 0.5)
    before = engine_ranks.plain(engine.weights())
    with pytest.raises(NumericsError, match="the gradient of the model is not finite"):
        engine_ranks.train(engine, range(1), 2, float("nan"))
    assert engine_ranks.plain(engine.weights()) == before


def test_in_bfloat16_the_gradients_of_micro_batches_are_summed_in_float32():
    """1 and 256 times 2**-9 are 1.5; in bfloat16 each of the small ones is rounded away."""
    module = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    engine = TorchEngine("policy", module, 1e-2, adam_eps=1e-5, max_grad_norm=10.0)
    for share in [1.0] + [2**-9] * 256:
        engine.backward(module(torch.ones(1, 1, dtype=torch.bfloat16)).sum() * share)
    assert engine.step() == 1.5

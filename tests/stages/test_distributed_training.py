"""SFT and reward training on two real gloo ranks with ZeRO 1, 2 and 3, beside one process without DeepSpeed."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_world
from safetensors.torch import load_file

from stages import reward, sft

ZERO = (1, 2, 3)
ROUNDING = 2e-5  # relative; float32 sums in another order, over 8 Adam steps


def two_ranks(scenarios: str, folder: Path, world: Path) -> list[tuple[int, str]]:
    """Exit code and stderr of each rank of `python -m rank_scenarios`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    own = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(Path(tiny_world.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **meeting, **own, "PYTHONPATH": path}
    command = [sys.executable, "-m", "rank_scenarios", scenarios, str(folder), str(world)]
    logs = [folder / f"{scenarios.split(',')[0]}.rank{rank}.txt" for rank in (0, 1)]
    processes = []
    for rank in (0, 1):
        numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with logs[rank].open("w") as log:
            processes.append(subprocess.Popen(command, env={**environment, **numbers}, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory) -> Path:
    """one/: SFT and reward in one process on plain PyTorch."""
    folder = tmp_path_factory.mktemp("ranks")
    config = tiny_world.composed(*tiny_world.tiny_overrides(folder / "one", world))
    sft.run(config)
    reward.run(config)
    return folder


@pytest.fixture(scope="module")
def first(folder, world) -> list[tuple[int, str]]:
    """The runs on two ranks, the last of which is killed."""
    return two_ranks("short_runs,long_runs,stopped_runs", folder, world)


@pytest.fixture(scope="module")
def second(first, folder, world) -> list[tuple[int, str]]:
    """The runs that go on, and those with bad gradients."""
    return two_ranks("resumed_runs,bad_gradients", folder, world)


def metrics(stage_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (stage_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def weights(stage_dir: Path, file: str = "model") -> dict:
    return load_file(stage_dir / "model" / f"{file}.safetensors")


@pytest.mark.parametrize("stage", ZERO)
@pytest.mark.parametrize("name", ["sft", "reward"])
def test_two_ranks_measure_what_one_process_measures(first, folder, name, stage):
    alone, shared = metrics(folder / "one" / name), metrics(folder / f"zero{stage}" / name)
    assert len(alone) == len(shared) == 12
    for row, other in zip(alone, shared, strict=True):
        assert other == pytest.approx(row, rel=ROUNDING)


@pytest.mark.parametrize("stage", ZERO)
@pytest.mark.parametrize("name", ["sft", "reward"])
def test_two_ranks_save_the_whole_model_that_one_process_trains(first, folder, name, stage):
    alone, shared = weights(folder / "one" / name), weights(folder / f"zero{stage}" / name)
    assert alone.keys() == shared.keys()
    for key, value in alone.items():
        assert shared[key].shape == value.shape
        assert (shared[key] - value).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_the_headline_figures_are_those_of_one_process(first, folder, name):
    alone, shared = [json.loads((folder / run / name / "manifest.json").read_text()) for run in ("one", "zero3")]
    assert shared["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert shared["reward_norm"] == (alone["reward_norm"] and pytest.approx(alone["reward_norm"], rel=1e-3))


def test_sigterm_to_one_rank_stops_both_at_the_same_step(first):
    said = [[line for line in err.splitlines() if ": stopped at step" in line] for _, err in first]
    steps = [[line.split("stopped at step ")[1] for line in lines] for lines in said]
    assert len(steps[0]) == 4 and steps[0] == steps[1]
    assert all(code == -signal.SIGKILL for code, _ in first)  # of the last run


@pytest.mark.parametrize(
    ("name", "stage", "file"),
    [
        ("zero1", "sft", "model"),
        ("zero2", "sft", "model"),
        ("zero3", "sft", "model"),
        ("lora", "sft", "adapter_model"),
        ("lora-reward", "reward", "adapter_model"),
    ],
)
def test_a_stopped_or_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(second, folder, name, stage, file):
    assert [code for code, _ in second] == [0, 0], second[0][1]
    long, stopped = folder / f"long-{name}" / stage, folder / f"stopped-{name}" / stage
    assert metrics(stopped) == metrics(long)
    expected, found = weights(long, file), weights(stopped, file)
    assert expected.keys() == found.keys()
    assert all((found[key] == value).all() for key, value in expected.items())


def test_a_run_that_goes_on_says_from_where_and_no_other_zero_stage_may(second):
    assert second[0][1].count("going on from ") == 5
    (line,) = [line for line in second[0][1].splitlines() if line.startswith("refused: ")]
    assert "deepspeed.zero_stage 1 -> 2" in line


@pytest.mark.parametrize("stage", ZERO)
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(second, stage):
    for rank, (_, err) in enumerate(second):
        assert f"rank {rank} zero {stage}: step 1: the gradient is not finite" in err

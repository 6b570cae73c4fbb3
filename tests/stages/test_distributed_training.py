"""SFT and reward training on two real gloo ranks with ZeRO 1, 2 and 3, beside one process without DeepSpeed."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import rank_scenarios
import tiny_world
from safetensors.torch import load_file

from rlhf.errors import Stopped
from stages import reward, sft

ROUNDING = 2e-5  # relative; float32 sums in another order, over 4 Adam steps
ONE = {
    **dict.fromkeys(["zero1", "zero2", "zero3", "reward1", "reward2", "reward3"], "one"),
    **dict.fromkeys(["lora", "lora-reward"], "one-lora"),
}


def two_ranks(folder: Path, world: Path) -> list[tuple[int, str]]:
    """Exit code and stderr of each rank of `python -m rank_scenarios`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    own = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(Path(tiny_world.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **meeting, **own, "PYTHONPATH": path}
    command = [sys.executable, "-m", "rank_scenarios", str(folder), str(world)]
    logs = [folder / f"rank{rank}.txt" for rank in (0, 1)]
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
def alone(world):
    """alone(folder, "adapter=lora"): the config of one process without DeepSpeed."""

    def make(folder: Path, *overrides: str):
        run = tiny_world.tiny_overrides(folder, world)
        return tiny_world.composed(*run, *rank_scenarios.SHORT, *overrides)

    return make


@pytest.fixture(scope="module")
def folder(alone, world, tmp_path_factory) -> Path:
    """one/ and one-lora/: SFT and reward in one process on plain PyTorch; stopped-one/: SFT stopped after 3 steps."""
    folder = tmp_path_factory.mktemp("ranks")
    lora = [*rank_scenarios.LORA, f"model.path={folder}/one/sft/model"]
    for name, overrides in (("one", []), ("one-lora", lora)):
        sft.run(alone(folder / name, *overrides))
        reward.run(alone(folder / name, *overrides))
    with rank_scenarios.signalled(3, signal.SIGTERM, ranks=[0]), pytest.raises(Stopped):
        sft.run(alone(folder / "stopped-one"))
    return folder


@pytest.fixture(scope="module")
def ranks(folder, world) -> list[tuple[int, str]]:
    """How both ranks ended: by the kill, after all else."""
    ended = two_ranks(folder, world)
    assert [code for code, _ in ended] == [-signal.SIGKILL] * 2, ended[0][1][-3000:] + ended[1][1][-3000:]
    return ended


def metrics(stage_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (stage_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def weights(stage_dir: Path) -> dict:
    (file,) = (stage_dir / "model").glob("*model.safetensors")
    return load_file(file)


def stage_of(name: str) -> str:
    return "reward" if "reward" in name else "sft"


def assert_same_curve(expected: Path, found: Path) -> None:
    """Metrics and weights agree to rounding."""
    rows, others = metrics(expected), metrics(found)
    assert len(rows) == len(others) == 6  # 4 steps and 2 validations
    for row, other in zip(rows, others, strict=True):
        assert other == pytest.approx(row, rel=ROUNDING)
    trained, other = weights(expected), weights(found)
    assert trained.keys() == other.keys()
    for key, value in trained.items():
        assert other[key].shape == value.shape
        assert (other[key] - value).abs().max() < 1e-5


@pytest.mark.parametrize("name", ONE)
def test_two_ranks_measure_and_save_what_one_process_does(ranks, folder, name):
    assert_same_curve(folder / ONE[name] / stage_of(name), folder / name / stage_of(name))


@pytest.mark.parametrize("name", ["zero3", "reward3", "lora-reward"])
def test_the_headline_figures_are_those_of_one_process(ranks, folder, name):
    one, two = [json.loads((folder / run / stage_of(name) / "manifest.json").read_text()) for run in (ONE[name], name)]
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    assert two["reward_norm"] == (one["reward_norm"] and pytest.approx(one["reward_norm"], rel=1e-3))


def test_sigterm_to_one_rank_stops_both_at_the_same_step(ranks):
    for rank, (_, err) in enumerate(ranks):
        assert err.count(f"rank {rank}: Stopped: stopped at step 3, saved") == len(rank_scenarios.STOPPED)


@pytest.mark.parametrize("name", rank_scenarios.STOPPED)
def test_a_stopped_run_ends_bit_for_bit_like_an_uninterrupted_one(ranks, folder, name):
    straight, stopped = folder / name / "sft", folder / f"stopped-{name}" / "sft"
    assert metrics(stopped) == metrics(straight)
    expected, found = weights(straight), weights(stopped)
    assert expected.keys() == found.keys()
    assert all(found[key].equal(value) for key, value in expected.items())


def test_a_run_that_goes_on_says_from_where_and_no_other_zero_stage_may(ranks):
    assert ranks[0][1].count("going on from ") == len(rank_scenarios.STOPPED) + 1
    (line,) = [line for line in ranks[0][1].splitlines() if "ArtifactError" in line]
    assert "deepspeed.zero_stage 1 -> 2" in line and "run.reshard=true" in line


def test_two_ranks_go_on_with_what_one_process_stopped(ranks, folder):
    assert "goes on otherwise shared out" in ranks[0][1]
    assert_same_curve(folder / "one" / "sft", folder / "stopped-one" / "sft")


def test_one_process_goes_on_with_what_two_ranks_left_when_they_were_killed(ranks, folder, alone):
    sft.run(alone(folder / "killed", "run.reshard=true"))
    assert_same_curve(folder / "one" / "sft", folder / "killed" / "sft")


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(ranks):
    for rank, (_, err) in enumerate(ranks):
        assert err.count(f"rank {rank}: NumericsError: step 1: the gradient is not finite") == 2  # on ZeRO 2 and 3

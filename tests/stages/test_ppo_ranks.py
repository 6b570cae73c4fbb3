"""PPO on two real gloo ranks with ZeRO 1, 2 and 3, beside one process on plain PyTorch."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_world
from ppo_on_two_ranks import EVERY_OPTION, STAGES
from safetensors.torch import load_file

from rlhf.artifacts.manifest import load_manifest
from rlhf.errors import ArtifactError
from stages import ppo

CLOCK = ("time", "throughput", "eps")
ROUNDING_ITSELF = "val/rollout_logprob_diff"
FIRST, SECOND = "every_option,adapters,token_by_token,failing", "stopped,left_for_another"


def metrics(folder: Path) -> list[dict]:
    """By step, less clock times; the first line is the evaluation before any step."""
    lines = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(CLOCK)} for line in lines]


def weights(folder: Path) -> bytes:
    return next((folder / "ppo" / "model").glob("*.safetensors")).read_bytes()


def assert_close(one: list[dict], other: list[dict]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        for name in [name for name in ours if not name.startswith(ROUNDING_ITSELF)]:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=1e-5), name


@pytest.fixture(scope="module")
def ranks(finished, world, tmp_path_factory) -> Path:
    """All runs of ppo_on_two_ranks.py."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    path = os.pathsep.join([str(Path(tiny_world.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {**os.environ, **meeting, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "ppo_on_two_ranks", *map(str, (folder, world, finished)), f"{FIRST},{SECOND}"]
    numbers = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    processes = [subprocess.Popen(command, env={**common, **own}) for own in numbers]
    try:
        assert [process.wait(timeout=900) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.fixture(scope="module")
def alone(finished, world, tmp_path_factory):
    """alone("adapter=lora") is the folder of the same run in one process, made once."""
    folder, made = tmp_path_factory.mktemp("alone"), {}

    def run(*overrides: str) -> Path:
        if overrides not in made:
            made[overrides] = folder / str(len(made))
            options = tiny_world.tiny_overrides(made[overrides], world)
            roles = [f"inputs.{role}={finished}/{role}" for role in ("sft", "reward")]
            ppo.run(tiny_world.composed(*options, *roles, *overrides))
        return made[overrides]

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_gives_the_same_numbers_on_two_ranks(ranks, alone, stage):
    """The early stop, too: its number of updates is logged."""
    one = metrics(alone(*EVERY_OPTION))
    assert len({step.get("val/num_updates") for step in one}) > 2  # the early stop acts
    assert_close(one, metrics(ranks / f"zero{stage}"))


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_give_the_same_numbers_on_two_ranks(ranks, alone, stage):
    """With ZeRO-3 the frozen base is shared out, and gradients go through it to the adapters."""
    assert_close(metrics(alone("adapter=lora")), metrics(ranks / f"lora{stage}"))
    saved = load_file(ranks / f"lora{stage}" / "ppo" / "model" / "adapter_model.safetensors")
    assert saved and all(value.numel() and value.isfinite().all() for value in saved.values())


@pytest.mark.parametrize(("name", "adapter"), [("slow", "none"), ("slow-lora", "lora")])
def test_sampling_that_gathers_weights_at_each_token_gives_the_same_numbers(ranks, alone, name, adapter):
    assert_close(metrics(alone(f"adapter={adapter}")), metrics(ranks / name))


@pytest.mark.parametrize("name", [*(f"zero{stage}" for stage in STAGES), "lora2"])
def test_a_run_that_was_stopped_by_a_signal_to_one_rank_ends_bit_for_bit_like_one_that_was_not(ranks, name):
    stopped = ranks / ("stopped-lora" if name == "lora2" else name.replace("zero", "stopped"))
    assert metrics(stopped) == metrics(ranks / name)
    assert weights(stopped) == weights(ranks / name)


def test_a_rule_that_fails_on_one_rank_stops_both_with_a_checkpoint_from_which_they_go_on(ranks):
    for rank in (0, 1):
        error = (ranks / f"failed-{rank}").read_text()
        assert "rank 1: rule 'tiny_world:fails_once' failed (ConnectionError: HTTP 503)" in error
        assert "Saved after 2 steps: the same command goes on from there" in error
    assert metrics(ranks / "failed") == metrics(ranks / "even")
    assert weights(ranks / "failed") == weights(ranks / "even")


def test_one_process_goes_on_with_the_run_of_two_where_that_is_asked_for(ranks, alone, finished, world, tmp_path):
    run_dir = shutil.copytree(ranks / "resharded", tmp_path / "run")
    roles = [f"inputs.{role}={finished}/{role}" for role in ("sft", "reward")]
    options = [*tiny_world.tiny_overrides(run_dir, world), *roles]
    with pytest.raises(ArtifactError, match=r"deepspeed.engine .*world_size 2 -> 1.*run\.reshard=true to go on"):
        ppo.run(tiny_world.composed(*options))
    ppo.run(tiny_world.composed(*options, "run.reshard=true"))
    assert_close(metrics(alone()), metrics(run_dir))
    assert load_manifest(run_dir / "ppo")["status"] == "complete"

"""Two processes in one run.dir: the second is refused, and what is there stays whole."""

import shutil
import signal
import time

import pytest

from rlhf.artifacts.manifest import verify
from rlhf.locks import locked


@pytest.fixture
def in_use(run_dir):
    """A finished run whose folder somebody holds."""
    with locked(run_dir, ""):
        yield run_dir


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "evaluate", "pipeline", "export"])
@pytest.mark.parametrize("override", ["seed=0", "seed=1"])
def test_no_stage_touches_a_run_folder_that_another_process_holds(tiny_command, in_use, stage, override):
    before = {path: path.stat().st_mtime_ns for path in sorted(in_use.rglob("*"))}
    outcome = tiny_command(stage, override, "run.force=true")
    assert outcome.code == 2
    assert outcome.error.startswith(f"{in_use} is in use by process ")
    assert {path: path.stat().st_mtime_ns for path in sorted(in_use.rglob("*"))} == before


def test_of_two_runs_the_first_is_finished_whole_and_the_second_says_which_holds_the_folder(
    start, ended, tiny_command, finished, tmp_path
):
    shutil.copytree(finished / "sft", tmp_path / "run" / "sft")
    first = start("reward")
    while not (tmp_path / "run" / "reward" / "metrics.jsonl").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # in the midst of its work, for as long as the others take
    for stage, override in (("reward", "seed=0"), ("sft", "seed=1")):
        second = tiny_command(stage, override, "run.force=true")
        assert second.code == 2
        assert f"{tmp_path}/run is in use by process {first.pid} since " in second.error
        assert "(python -m stages.reward seed=0" in second.error
    first.send_signal(signal.SIGCONT)
    assert ended(first).code == 0
    weights = [verify(run / "reward")["files"]["model/model.safetensors"] for run in (tmp_path / "run", finished)]
    assert weights[0] == weights[1]
    assert verify(tmp_path / "run" / "sft") == verify(finished / "sft")

"""launch/multi_gpu.sh around real ranks: two processes on the CPU that train PPO in the tiny world."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny_world

from rlhf.artifacts.manifest import verify
from rlhf.locks import locked

SCRIPT = Path(__file__).parents[2] / "launch" / "multi_gpu.sh"
PATIENCE = 240  # seconds; a busy machine is slow to import torch
LONG = ("ppo.num_steps=60", "ppo.eval_steps=60", "ppo.save_steps=60", "ppo.learning_rate=1e-4")


class Job:
    """A running launch/multi_gpu.sh with its output in files."""

    def __init__(self, folder: Path, overrides: list[str], environment: dict[str, str], stage: str = "ppo"):
        self.mark = next(word for word in overrides if word.startswith("run.dir="))
        self.out_path, self.err_path = folder / "out.txt", folder / "err.txt"
        folder.mkdir(exist_ok=True)
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": sys.prefix,
            "PYTHONPATH": str(Path(tiny_world.__file__).parent),
            "CUDA_VISIBLE_DEVICES": "",
        }
        with self.out_path.open("w") as out, self.err_path.open("w") as err:
            command = ["bash", str(SCRIPT), stage, *overrides]
            pipes = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            self.process = subprocess.Popen(command, env={**os.environ, **own, **environment}, **pipes)

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    def code(self) -> int:
        return self.process.wait(timeout=PATIENCE)

    def until(self, text: str) -> None:
        """Waits until the job has printed the text."""
        give_up = time.monotonic() + PATIENCE
        while text not in self.out + self.err:
            assert self.process.poll() is None and time.monotonic() < give_up, self.out + self.err
            time.sleep(0.05)

    def processes(self, argument: str = "") -> list[psutil.Process]:
        """All that belong to this job, by its run.dir in their arguments: script, launcher and ranks."""
        found = psutil.process_iter(["cmdline"])
        return [
            process for process in found if {self.mark, argument or self.mark} <= {*(process.info["cmdline"] or [])}
        ]

    def ranks(self) -> list[psutil.Process]:
        """The Python processes of the stage itself."""
        return [process for process in self.processes("-u") if process.info["cmdline"][3] == "stages.ppo"]

    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if "error: " in line]


@pytest.fixture
def launch(tmp_path, world, finished):
    """launch("seed=1") starts PPO on two ranks from the finished run's first two stages, into tmp_path/run."""
    jobs = []

    def start(*overrides: str, name: str = "job", **environment: str) -> Job:
        inputs = [f"inputs.{stage}={finished / stage}" for stage in ("sft", "reward")]
        words = [*tiny_world.tiny_overrides(tmp_path / "run", world), *inputs, *overrides]
        jobs.append(Job(tmp_path / name, words, environment))
        return jobs[-1]

    yield start
    for job in jobs:
        for process in job.processes():
            process.kill()
        job.process.wait()


def test_sigterm_even_twice_saves_and_the_same_command_finishes(launch, tmp_path):
    stopped = launch(*LONG)
    stopped.until("ppo 0/60")
    for _ in range(2):
        stopped.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert stopped.code() == 75, stopped.err
    assert stopped.processes() == []
    (error,) = stopped.errors()
    steps = error.removeprefix("error: stopped after ").split()[0]
    assert error == f"error: stopped after {steps} steps, saved; the same command goes on from there"
    assert 1 <= int(steps) < 60

    finished = launch(*LONG, name="again")
    assert finished.code() == 0, finished.err
    assert finished.processes() == []
    assert verify(tmp_path / "run" / "ppo")["stage"] == "ppo"
    assert [line for line in finished.out.splitlines() if not line.startswith("ppo ")] == []
    assert finished.out.count("ppo 60/60") == 1 and "ppo 0/60" not in finished.out
    assert [line for line in finished.err.splitlines() if not line.startswith(("ppo: ", "  ", "step "))] == []
    assert finished.err.count("ppo: done in") == 1


def test_a_killed_rank_ends_the_job_within_seconds_and_is_named(launch):
    job = launch(*LONG)
    job.until("ppo 0/60")
    job.ranks()[1].kill()
    began = time.monotonic()
    assert job.code() == 5 and time.monotonic() - began < PATIENCE / 2  # DeepSpeed's own patience is half an hour
    assert job.processes() == []
    assert job.errors() == [
        "error: a rank was ended by SIGKILL, perhaps for lack of memory. The other processes were ended; the same "
        "command goes on from the last checkpoint"
    ]


def test_a_mistake_that_all_ranks_meet_is_told_once(launch):
    job = launch("ppo.minibatch_size=7")
    assert job.code() == 2
    (error,) = job.errors()
    assert error.startswith("error: config: ppo.batch_size=8 must be a multiple of ppo.minibatch_size=7; ")
    assert job.err == f"{error}\n" and job.out == ""


def test_a_run_folder_that_is_in_use_is_told_once_and_no_rank_touches_it(launch, tmp_path):
    with locked(tmp_path / "run", ""):
        job = launch()
        assert job.code() == 2
        (error,) = job.errors()
        assert error.startswith(f"error: {tmp_path}/run is in use by process {os.getpid()} since ")
        assert job.err == f"{error}\n" and job.out == ""
        assert job.processes() == []
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_an_error_of_one_rank_is_told_with_its_number(launch, finished, tmp_path):
    """The ranks look for their SFT artifact at different places, and one of them finds nothing."""
    (tmp_path / "rank0").symlink_to(finished)
    job = launch(f"inputs.sft={tmp_path}/rank${{oc.env:RANK}}/sft")
    assert job.code() == 3
    (error,) = job.errors()
    assert error.startswith(f"[rank 1] error: {tmp_path}/rank1/sft: not there; ")


def test_two_machines_of_one_rank_each_meet_without_ssh(launch, tmp_path):
    hosts = tmp_path / "hostfile"
    hosts.write_text("# two names of this machine\nlocalhost slots=1\n127.0.0.1 slots=1\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"HOSTFILE": str(hosts), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    first, second = (launch(name=f"node{rank}", NODE_RANK=str(rank), **meeting) for rank in (0, 1))
    first.until("ppo 0/4")
    environments = [rank.environ() for rank in first.ranks()]
    assert sorted((own["RANK"], own["LOCAL_RANK"]) for own in environments) == [("0", "0"), ("1", "0")]
    assert [job.code() for job in (first, second)] == [0, 0], first.err + second.err
    assert verify(tmp_path / "run" / "ppo")["stage"] == "ppo"
    assert (second.out, second.err) == ("", "")


def test_the_launcher_runs_all_stages_on_two_ranks(tmp_path, world):
    """With ZeRO 3, which shares out most; numbers with 1 and 2 are those of one process in test_distributed_training.py
    (SFT, reward) and test_ppo_ranks.py (PPO), and evaluation uses no ZeRO."""
    overrides = tiny_world.tiny_overrides(tmp_path / "run", world)
    job = Job(tmp_path / "job", [*overrides, "deepspeed=zero3"], {}, stage="pipeline")
    assert job.code() == 0, job.err
    for stage in ("sft", "reward", "ppo", "evaluate"):
        assert verify(tmp_path / "run" / stage)["status"] == "complete"
    assert job.out.count("PPO wins") == 1
    assert not job.processes()

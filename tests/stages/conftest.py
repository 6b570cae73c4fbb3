"""One finished run of all stages in the tiny world, made once a session; tests that change it work on a copy."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_world

from rlhf.run.command import start as start_stage
from stages import pipeline


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """The folder of the tiny world's data files. Not to be changed: see `own_world`."""
    return tiny_world.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory) -> Path:
    """The folder of a finished run. Not to be changed: see `run_dir`."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    pipeline.run(tiny_world.composed(*tiny_world.tiny_overrides(run_dir, world)))
    return run_dir


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """A copy of the finished run, to be changed at will."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def own_world(world, tmp_path) -> Path:
    """A copy of the data files, to be changed at will."""
    return Path(shutil.copytree(world, tmp_path / "world"))


@dataclass(frozen=True)
class Outcome:
    """How a command ended. error: the text of its one line `error: ...`, or None."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str | None:
        lines = [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) <= 1, f"{len(lines)} error lines, where one was to be: {lines}"
        return lines[0] if lines else None


@pytest.fixture
def command(monkeypatch, capsys, own_logging):
    """command("sft", "seed=1") does what `python -m stages.sft seed=1` does, in this process."""
    for name, value in (
        ("HYDRA_FULL_ERROR", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        monkeypatch.setenv(name, value)  # what it sets, taken back after the test

    def run(stage: str, *overrides: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"stages/{stage}.py", *map(str, overrides)])
        capsys.readouterr()
        code = 0
        try:
            start_stage(f"stages.{stage}")
        except SystemExit as ended:
            code = ended.code or 0
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def tiny_command(command, tmp_path, world):
    """The same with the tiny world's config, in tmp_path/run."""

    def run(stage: str, *overrides: str) -> Outcome:
        return command(stage, *tiny_world.tiny_overrides(tmp_path / "run", world), *overrides)

    return run


@pytest.fixture
def start(tmp_path, world):
    """start("sft", "seed=1") is the running process of `python -m stages.sft` in the tiny world, from tmp_path."""
    processes = []

    def run(stage: str, *overrides: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"stages.{stage}", *tiny_world.tiny_overrides(tmp_path / "run", world)]
        path = os.pathsep.join([str(Path(tiny_world.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([*command, *overrides], cwd=tmp_path, env=environment, **pipes))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def ended():
    """ended(process): how a started process ended, once it has."""

    def wait(process: subprocess.Popen) -> Outcome:
        out, err = process.communicate(timeout=600)  # seconds; a busy machine is slow to import torch
        return Outcome(process.returncode, out, err)

    return wait


@pytest.fixture
def config(tmp_path, world):
    """config("seed=1") is the tiny world's checked config, with the run in tmp_path/run."""
    return lambda *overrides: tiny_world.composed(*tiny_world.tiny_overrides(tmp_path / "run", world), *overrides)

"""`-m`: one job for each combination of values, one after the other in this process, each in a folder of its own."""

import dataclasses
import gc
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.composing import load_config, split_sweep
from rlhf.config.errors import quoted
from rlhf.config.schema import Config
from rlhf.console import say
from rlhf.errors import Stopped, UserError
from rlhf.hashing import text_sha256
from rlhf.ranks import launched_world_size
from rlhf.run.cli import run_stage

STOPS_ALL = {Stopped.exit_code, 130}  # asked for by a person or a scheduler
MAX_NAME = 120  # characters; a file system takes 255 bytes


@dataclass(frozen=True)
class Job:
    """One run of a sweep. name: the values that are its own, "" where nothing varies."""

    name: str
    config: Config


def run_sweep(run: Callable[[Config], Path], jobs: list[Job]) -> int:
    """Runs the jobs, also those after one that failed; returns the exit code of the first that failed, or 0."""
    failed = {}
    for number, job in enumerate(jobs, 1):
        say(f"job {number} of {len(jobs)}: {job.name or 'nothing varies'} -> {job.config.run.dir}")
        code = _run(run, job.config)
        if code in STOPS_ALL:
            return code
        if code:
            failed[job.config.run.dir] = code
    for folder, code in failed.items():
        say(f"failed with exit code {code}: {folder}")
    return next(iter(failed.values()), 0)


def _run(run: Callable[[Config], Path], config: Config) -> int:
    try:
        run_stage(run, config)
    except SystemExit as ended:
        return ended.code
    finally:
        _free_memory()
    return 0


def _free_memory() -> None:
    """Of the job that ended: its models refer to one another."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def plan_jobs(overrides: Sequence[str], config_dir: str | None, makes_inputs: bool) -> list[Job]:
    """All jobs of a sweep, each checked before the first one runs. makes_inputs: a job makes all that it consumes."""
    _require_plain(overrides)
    jobs = []
    for settings, own in split_sweep(overrides, config_dir):
        name = _folder_name(own)
        jobs.append(Job(name, _job_config(settings, name, config_dir, makes_inputs)))
    folders = [job.config.run.dir for job in jobs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"config: several jobs would write to run.dir={folder}; name each value once")
    return jobs


def _require_plain(overrides: Sequence[str]) -> None:
    if launched_world_size() > 1:
        rule = f"runs its jobs in one process, and this run has {launched_world_size()}"
        raise UserError(f"config: -m {rule}; start one command for each value")
    for override in overrides:
        if re.match(r"[+~]*hydra[./](?!searchpath)", override):
            raise UserError(
                f"config: {override} has no effect with -m: jobs run one after the other in this process; on a cluster "
                "start one command for each (launch/slurm.sbatch)"
            )


def _folder_name(own: Sequence[str]) -> str:
    """A name for a folder from the settings that vary, run.dir left out."""
    name = ",".join(setting for setting in own if not setting.startswith("run.dir="))
    plain = re.sub(r"[^\w.,=+-]", "_", name)
    if plain == name and len(name) <= MAX_NAME:
        return name
    return f"{plain[:MAX_NAME]}_{text_sha256(name)[:8]}"


def _job_config(settings: Sequence[str], name: str, config_dir: str | None, makes_inputs: bool) -> Config:
    """The job's config, in <run.dir>/<name>. Inputs that are not there are those of run.dir, which all jobs share."""
    shared = load_config(settings, config_dir)
    folder = str(Path(shared.run.dir, name))
    config = load_config([*settings, f"run.dir={quoted(folder)}"], config_dir)
    if makes_inputs:
        return config
    inputs = {
        role: path if Path(path, "manifest.json").exists() else getattr(shared.inputs, role)
        for role, path in vars(config.inputs).items()
    }
    return dataclasses.replace(config, inputs=type(config.inputs)(**inputs))

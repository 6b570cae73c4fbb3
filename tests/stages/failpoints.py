"""Kills a stage, as kill -9 would, at each operation on its folder in turn, and lets it go on.

An operation opens a file for writing, writes tensors, syncs, renames, makes or removes something.
`python tests/stages/failpoints.py FOLDER STAGE [FIRST [LAST]]` kills SFT, the reward model or PPO in the tiny world at
every one of them (or FIRST to LAST); prints a JSON line for each: the operation, and whether the run that went on ended
bit for bit like one that was never killed. Each trial is a fork of this process, so that torch is imported once.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

import tiny_world
from test_resume import result

WATCHED = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0}  # audit event -> argument that is the path
KILLED = 137  # what a shell reports of kill -9


class Failpoint:
    """Counts the operations below a folder; the process ends at number `fatal`, halfway through where it writes."""

    def __init__(self, folder: Path, fatal: int, report: int):
        self.folder, self.fatal, self.report, self.count = str(folder), fatal, report, 0

    def arm(self) -> None:
        import safetensors.torch

        sys.addaudithook(self._on_event)
        sync, write = os.fsync, safetensors.torch.serialize_file
        os.fsync = lambda descriptor: (self._reach("fsync"), sync(descriptor))
        safetensors.torch.serialize_file = lambda tensors, path, **options: self._write(write, tensors, path, options)

    def _on_event(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and self._is_watched(arguments[0]):
                self._reach(f"open {Path(arguments[0]).name}")
        elif event in WATCHED and self._is_watched(arguments[WATCHED[event]]):
            self._reach(f"{event} {Path(arguments[WATCHED[event]]).name}")

    def _is_watched(self, path) -> bool:
        return isinstance(path, str | os.PathLike) and str(path).startswith(self.folder)

    def _write(self, write, tensors, path, options) -> None:
        write(tensors, path, **options)
        self._reach(f"write {Path(path).name}", before_exit=lambda: os.truncate(path, os.path.getsize(path) // 2))

    def _reach(self, name: str, before_exit=lambda: None) -> None:
        self.count += 1
        if self.count == self.fatal:
            before_exit()
            os.write(self.report, name.encode())
            os._exit(KILLED)


def in_fork(work) -> int:
    """The exit code of work() in a fork of this process: 0 where it returned."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            code = 0
        except BaseException:  # a fork must not go on in its parent's code
            traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_stage(stage: str, run_dir: Path, inputs: Path, world: Path, failpoint: Failpoint | None = None) -> None:
    """A stage in the tiny world, on the artifacts in `inputs`: PPO with a checkpoint at every step, others at every
    second."""
    from stages import ppo, reward, sft

    needed = {"sft": [], "reward": ["sft"], "ppo": ["sft", "reward"]}[stage]
    roles = [f"inputs.{role}={inputs}/{role}" for role in needed]
    options = ["ppo.num_steps=3", "ppo.save_steps=1", "ppo.keep_checkpoints=1", "ppo.running_score_norm=true"]
    cfg = tiny_world.composed(*tiny_world.tiny_overrides(run_dir, world), *roles, *options)
    if failpoint is not None:
        failpoint.arm()
    {"sft": sft, "reward": reward, "ppo": ppo}[stage].run(cfg)


def trials(folder: Path, stage: str, first: int = 1, last: int = 10**9):
    """One record per failpoint: {number, operation, code, same}."""
    inputs, world = folder / "inputs", folder / "world"
    if not (inputs / "reward" / "manifest.json").exists():
        assert in_fork(lambda: prepare(inputs, world)) == 0
    if not (folder / "straight" / stage / "manifest.json").exists():
        assert in_fork(lambda: run_stage(stage, folder / "straight", inputs, world)) == 0
    expected = result(folder / "straight" / stage)
    for number in range(first, last + 1):
        run_dir = folder / f"killed-{stage}-{number:03d}"
        read, write = os.pipe()
        code = in_fork(lambda: run_stage(stage, run_dir, inputs, world, Failpoint(run_dir, number, write)))  # noqa: B023
        os.close(write)
        operation = os.read(read, 1000).decode()
        os.close(read)
        if code == 0:
            return
        resumed = in_fork(lambda: run_stage(stage, run_dir, inputs, world))  # noqa: B023
        same = resumed == 0 and result(run_dir / stage) == expected
        yield {"number": number, "operation": operation, "killed": code == KILLED, "same": same}


def prepare(inputs: Path, world: Path) -> None:
    """The SFT and reward artifacts that the trials start from."""
    from stages import reward, sft

    tiny_world.write_world(world)
    cfg = tiny_world.composed(*tiny_world.tiny_overrides(inputs, world))
    sft.run(cfg)
    reward.run(cfg)


if __name__ == "__main__":
    from stages import ppo, reward, sft  # noqa: F401 - imported before the forks

    gc.freeze()  # a fork's gc.collect() looks through what is its own
    for record in trials(Path(sys.argv[1]).absolute(), sys.argv[2], *map(int, sys.argv[3:])):
        print(json.dumps(record), flush=True)

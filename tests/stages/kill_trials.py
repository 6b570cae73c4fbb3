"""Kills PPO by kill -9 at random moments, lets it go on each time, and compares its end with a run that was left alone.

`python tests/stages/kill_trials.py FOLDER MODE KILLS [SEED]`; MODE: one (process), lora (one process), zero1, zero2 or
zero3 (two ranks). A run of 12 steps is killed five times, at a random moment after it got one step further, then it
may finish; another run takes its turn until KILLS kills are done. Under two ranks the victim is rank 0, rank 1 or both.
Prints a JSON line for each run: its kills, and whether weights and metrics are bit for bit those of the run left alone.
Each process is a fork of this one, so that torch is imported once.
"""

import gc
import json
import multiprocessing
import os
import random
import socket
import sys
import time
from pathlib import Path

import tiny_world
from failpoints import in_fork, prepare
from test_resume import result

MODES = {"one": [], "lora": ["adapter=lora"], **{name: [f"deepspeed={name}"] for name in ("zero1", "zero2", "zero3")}}
KILLS_PER_RUN = 5
FORK = multiprocessing.get_context("fork")
OPTIONS = ["ppo.num_steps=12", "ppo.save_steps=1", "ppo.kl_control=adaptive", "ppo.running_score_norm=true"]


class Run:
    """PPO of the tiny world in a folder of its own, in one process or in two ranks."""

    def __init__(self, folder: Path, name: str, mode: str):
        self.folder, self.ranks = folder / name / "ppo", 2 if mode.startswith("zero") else 1
        roles = [f"inputs.{role}={folder / 'inputs' / role}" for role in ("sft", "reward")]
        values = tiny_world.tiny_overrides(folder / name, folder / "world")
        self.argv = ["stages/ppo.py", *values, *roles, *OPTIONS, *MODES[mode]]
        self.processes: list[multiprocessing.Process] = []

    def start(self) -> None:
        """Starts all ranks."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(self.ranks)}
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for rank in range(self.ranks):
            own = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} if self.ranks > 1 else {}
            process = FORK.Process(target=self._command, args=(own, self.folder.parent / f"log-{rank}.txt"))
            process.start()
            self.processes.append(process)

    def _command(self, environment: dict[str, str], log: Path) -> None:
        """What `python -m stages.ppo` does, in a fork."""
        from rlhf.run.command import start

        os.environ.update(environment)
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = self.argv
        start("stages.ppo")

    def steps(self) -> int:
        """Lines in the log of metrics, a step each."""
        log = self.folder / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def kill_later(self, chance: random.Random) -> bool:
        """Kills once the run got further and a random moment has passed; false where it ended before."""
        before = self.steps()
        while self.steps() <= before and self.alive():
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1.0))
        victims = chance.choice([self.processes, *([process] for process in self.processes)])
        was_alive = len(self.alive()) == self.ranks
        for process in victims:
            process.kill()
        self.end()
        return was_alive

    def alive(self) -> list[multiprocessing.Process]:
        return [process for process in self.processes if process.is_alive()]

    def end(self) -> list[int]:
        """Waits for all ranks; what the other one says of a killed rank is in the log."""
        for process in self.processes:
            process.join(600)  # seconds
        codes = [process.exitcode for process in self.processes]
        self.processes = []
        return codes


def trials(folder: Path, mode: str, kills: int, seed: int = 0):
    """One record per run: {mode, kills, codes, same}."""
    chance = random.Random(f"{mode}-{seed}")
    straight = Run(folder, f"{mode}-straight", mode)
    straight.start()
    assert straight.end() == [0] * straight.ranks
    expected, done, number = result(straight.folder), 0, 0
    while done < kills:
        number += 1
        run, own = Run(folder, f"{mode}-{seed}-{number}", mode), 0
        for _ in range(min(KILLS_PER_RUN, kills - done)):
            run.start()
            own += run.kill_later(chance)
        run.start()
        codes = run.end()
        done += own
        yield {"mode": mode, "kills": own, "codes": codes, "same": result(run.folder) == expected}


if __name__ == "__main__":
    import stages.ppo  # noqa: F401 - imported before the forks

    gc.freeze()  # a fork's gc.collect() looks through what is its own
    place = Path(sys.argv[1]).absolute()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if not (place / "inputs" / "reward" / "manifest.json").exists():
        assert in_fork(lambda: prepare(place / "inputs", place / "world")) == 0
    for record in trials(place, sys.argv[2], *map(int, sys.argv[3:])):
        print(json.dumps(record), flush=True)

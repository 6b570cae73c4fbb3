"""What one rank of two does in test_ppo_ranks.py: `python -m ppo_on_two_ranks FOLDER WORLD ARTIFACTS TASK,TASK...`.

PPO runs one after the other, as starting two processes takes longer than a run. FOLDER/<name> is the run of that name.
"""

import sys
from pathlib import Path

import tiny_world

from rlhf import distributed
from rlhf.engines import deepspeed_config
from rlhf.errors import Stopped, UserError
from rlhf.run import cli
from rlhf.tracking.tracker import SilentTracker, Tracker
from stages import ppo

STAGES = (1, 2, 3)
EVERY_OPTION = [
    *("ppo.ptx_coef=1.0", "ppo.ptx_batch_size=8", "ppo.ema_decay=0.5", "ppo.responses_per_prompt=2"),
    *("ppo.bootstrap_cut=true", "ppo.num_epochs=4", "ppo.minibatch_size=4", "ppo.micro_batch_size=2"),
    *("ppo.target_kl=0.02", "ppo.kl_control=adaptive", "ppo.kl_horizon=50", "ppo.running_score_norm=true"),
]


class StopAtStep2:
    """A SIGTERM that reaches rank 1 alone, when step 2 is logged."""

    def __enter__(self):
        self.logs = {kind: kind.log for kind in (Tracker, SilentTracker)}
        for kind, log in self.logs.items():
            kind.log = self._then_stop(log)

    def __exit__(self, *exception):
        for kind, log in self.logs.items():
            kind.log = log

    def _then_stop(self, log):
        def log_and_signal(tracker, step, metrics):
            log(tracker, step, metrics)
            if step == 2 and distributed.rank() == 1:
                import signal

                signal.raise_signal(signal.SIGTERM)

        return log_and_signal


class Runs:
    """PPO in the tiny world, into folders below one."""

    def __init__(self, folder: Path, world: Path, artifacts: Path):
        self.folder, self.world, self.artifacts = folder, world, artifacts

    def run(self, name: str, stage: int, *overrides: str) -> None:
        options = [
            *tiny_world.tiny_overrides(self.folder / name, self.world),
            *(f"inputs.{role}={self.artifacts}/{role}" for role in ("sft", "reward")),
            *(f"deepspeed=zero{stage}", *overrides),
        ]
        ppo.run(tiny_world.composed(*options, world_size=2))

    def every_option(self) -> None:
        for stage in STAGES:
            self.run(f"zero{stage}", stage, *EVERY_OPTION)

    def adapters(self) -> None:
        for stage in STAGES:
            self.run(f"lora{stage}", stage, "adapter=lora")

    def token_by_token(self) -> None:
        """ZeRO-3 without room for gathered weights, whole and under adapters."""
        for name, adapter in (("slow", "none"), ("slow-lora", "lora")):
            self.run(name, 3, f"adapter={adapter}", "deepspeed.gather_share=1e-12")

    def stopped(self) -> None:
        """Every option, and a LoRA run, stopped after step 2 by a signal to one rank; then gone on with."""
        runs = [(f"stopped{stage}", stage, EVERY_OPTION) for stage in STAGES] + [("stopped-lora", 2, ["adapter=lora"])]
        for name, stage, overrides in runs:
            try:
                with StopAtStep2():
                    self.run(name, stage, *overrides)
            except Stopped:
                self.run(name, stage, *overrides)

    def failing(self) -> None:
        """A rule that fails on rank 1 alone, beside a reward model whose weights both ranks hold together."""
        rewards = "ppo.rewards=[{source: tiny_world:fails_once}, {source: reward, weight: 0.5}]"
        self.run("even", 3, rewards)
        tiny_world.fails_once.calls, tiny_world.fails_once.fails_at = 0, 6 if distributed.rank() == 1 else None
        try:
            self.run("failed", 3, rewards, "ppo.save_steps=100")
        except UserError as error:
            (self.folder / f"failed-{distributed.rank()}").write_text(str(error))
            self.run("failed", 3, rewards, "ppo.save_steps=100")

    def left_for_another(self) -> None:
        """Stopped after step 2, for one process to go on with."""
        try:
            with StopAtStep2():
                self.run("resharded", 2)
        except Stopped:
            return


if __name__ == "__main__":
    *places, tasks = sys.argv[1:]
    distributed.start()
    cli.quieten_libraries()
    # So small that the tiny model's weights are shared out, and released after use, as a large model's are.
    deepspeed_config.PERSISTENT, deepspeed_config.LIVE, deepspeed_config.BUCKET = 0, 0, 500
    runs = Runs(*map(Path, places))
    for task in tasks.split(","):
        getattr(runs, task)()
    distributed.leave()

"""What one rank of two does in test_ppo_options.py: `python -m ppo_on_two_ranks FOLDER WORLD ARTIFACTS OVERRIDE...`.

PPO on each ZeRO stage into FOLDER/zero<stage>, one after the other, as starting two processes takes longer than a run.
"""

import sys
from pathlib import Path

import tiny_world

from rlhf import cli, distributed
from stages import ppo

if __name__ == "__main__":
    folder, world, artifacts, *overrides = sys.argv[1:]
    distributed.start()
    cli._quieten_libraries()
    for stage in (1, 2, 3):
        options = [
            *tiny_world.tiny_overrides(Path(folder) / f"zero{stage}", Path(world)),
            *(f"inputs.{role}={artifacts}/{role}" for role in ("sft", "reward")),
            *(f"deepspeed=zero{stage}", *overrides),
        ]
        ppo.run(tiny_world.composed(*options, world_size=2))

"""What the terminal shows of a stage: what it loads, how many steps there are, how far it is, what it wrote where."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import tiny_world

ROOT = Path(__file__).parents[2]
# Runs a command as `python -m` does, and writes what was imported to the file named by MODULES when it ends.
NOTING = (
    "import atexit, json, os, runpy, sys; name = sys.argv.pop(1); "
    "atexit.register(lambda: json.dump(sorted(sys.modules), open(os.environ['MODULES'], 'w'))); "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def in_order(parts, text):
    """Whether the parts stand in the text one after the other."""
    place = 0
    for part in parts:
        place = text.find(part, place) + 1
        if place == 0:
            return False
    return True


def test_a_plain_run_says_where_it_is_and_no_library_that_is_not_in_use_is_imported_or_speaks(world, tmp_path):
    path = f"{ROOT}{os.pathsep}{Path(tiny_world.__file__).parent}"
    environment = {**os.environ, "MODULES": str(tmp_path / "modules.json"), "PYTHONPATH": path}
    overrides = tiny_world.tiny_overrides(tmp_path / "run", world)
    command = [sys.executable, "-c", NOTING, "stages.sft", *overrides]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()
    assert all(line.startswith(("sft: ", "  ")) for line in lines), ended.stderr
    said = ["sft: never ran", "loading a new model", "training: 8 steps of 16, 2 passes over", "perplexity", "wrote"]
    assert in_order([*said, "sft: done in"], ended.stderr)
    assert ended.stdout.splitlines()[-1].startswith("sft 8/8 ")
    modules = set(json.loads((tmp_path / "modules.json").read_text()))
    assert not modules & {"deepspeed", "matplotlib", "optuna", "fastapi"}


def test_evaluate_counts_the_answers_that_it_samples(command, run_dir, world):
    shutil.rmtree(run_dir / "evaluate")
    ended = command("evaluate", *tiny_world.tiny_overrides(run_dir, world))
    assert ended.code == 0
    said = ["evaluate: never ran", "loading", "perplexity on", f"wrote {run_dir}/evaluate", "evaluate: done in"]
    assert in_order(said, ended.err)
    assert "evaluate: answers 32/32 " in ended.out  # 2 policies, 16 prompts


def test_reward_counts_the_samples_that_it_normalises_with(command, run_dir, world):
    shutil.rmtree(run_dir / "reward")
    ended = command("reward", *tiny_world.tiny_overrides(run_dir, world))
    assert ended.code == 0
    said = ["reward: never ran", "loading", "training: 8 steps of 16", "scoring the answers of 6 test prompts", "wrote"]
    assert in_order([*said, "reward: done in"], ended.err)
    assert "reward: samples of the SFT policy 16/16 " in ended.out

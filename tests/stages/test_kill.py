"""kill -9: at every operation of a save, and at random moments. The run that goes on ends as if nothing had happened.

The whole sets, of which these are a part that fits a test, are measured by failpoints.py and kill_trials.py themselves:
docs/RESULTS.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def records(script: str, *arguments) -> list[dict]:
    """What a script of this folder printed."""
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_ppo_goes_on_after_a_kill_at_each_operation_of_its_second_save(tmp_path):
    trials = records("failpoints.py", tmp_path, "ppo", 42, 64)
    operations = {trial["operation"] for trial in trials}
    assert {operation.split()[0] for operation in operations} >= {"open", "write", "fsync", "os.mkdir"}
    assert operations >= {"os.rename manifest.json", "os.rename step-000002", "os.rmdir .staging"}
    assert [trial for trial in trials if not (trial["killed"] and trial["same"])] == []


def test_sft_goes_on_after_a_kill_as_its_second_checkpoint_is_sealed_and_named(tmp_path):
    trials = records("failpoints.py", tmp_path, "sft", 70, 76)
    assert {trial["operation"] for trial in trials} >= {"os.rename manifest.json", "os.rename checkpoint-4"}
    assert [trial for trial in trials if not (trial["killed"] and trial["same"])] == []


@pytest.mark.parametrize("mode", ["lora", "zero2"])
def test_ppo_goes_on_after_kills_at_random_moments(tmp_path, mode):
    trials = records("kill_trials.py", tmp_path, mode, 2)
    assert sum(trial["kills"] for trial in trials) == 2  # in one run, or in two where the first was done too soon
    assert all(trial["same"] for trial in trials)

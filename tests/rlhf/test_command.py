"""The command line of a stage: quick until the config is sound, and only then the libraries that training needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.run.command import start

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "deepspeed", "bitsandbytes", "scipy"}
# Runs a command as `python -m` does, and writes what was imported to the file named by MODULES when it ends.
NOTING = (
    "import atexit, json, os, runpy, sys; name = sys.argv.pop(1); "
    "atexit.register(lambda: json.dump(sorted(sys.modules), open(os.environ['MODULES'], 'w'))); "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


@pytest.fixture
def imported(tmp_path):
    """imported("stages.sft", "--cfg", "job"): (exit code, stdout, stderr, modules it had imported when it ended)."""

    def run(*arguments):
        environment = {**os.environ, "MODULES": str(tmp_path / "modules.json"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", NOTING, *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        return ended.returncode, ended.stdout, ended.stderr, set(json.loads((tmp_path / "modules.json").read_text()))

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "err"),
    [
        (["stages.ppo", "--cfg", "job"], 0, ""),
        (["stages.ppo", "--help"], 0, ""),
        (["stages.sft", "sft.learning_rat=1"], 2, "error: config: no key 'sft.learning_rat'."),
        (["stages.reward", "ppo.gamma=2"], 2, "error: config: ppo.gamma=2.0 must lie between 0 and 1"),
    ],
    ids=["--cfg job", "--help", "a typo", "a value that cannot be"],
)
def test_the_config_is_shown_or_refused_before_any_heavy_library_is_imported(imported, arguments, code, err):
    ended, _, told, modules = imported(*arguments)
    assert ended == code and told.startswith(err)
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("reward.py", "hides our package 'reward' from Python; give it another name, e.g. my_reward"),
        ("rlhf/__init__.py", "hides our package 'rlhf' from Python; give it another name, e.g. my_rlhf"),
        ("datasets.py", "hides the library 'datasets' from Python; give it another name, e.g. my_datasets"),
    ],
)
def test_a_file_of_the_users_own_that_hides_a_package_is_named(imported, tmp_path, file, line):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    code, _, err, _ = imported("stages.sft", "seed=-1")
    assert (code, err) == (2, f"error: {tmp_path / file} {line}\n")


def test_a_conf_package_of_the_users_own_hides_nothing(imported, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "__init__.py").write_text("")
    (tmp_path / "conf" / "config.yaml").write_text("seed: 5\n")
    code, out, _, _ = imported("stages.sft", "--cfg", "job")
    assert code == 0 and out.startswith("seed: 0\n")


def test_settings_may_stand_on_both_sides_of_an_option(imported):
    code, out, _, _ = imported("stages.sft", "seed=5", "--cfg", "job", "ppo.num_steps=7")
    assert code == 0 and out.startswith("seed: 5\n") and "\n  num_steps: 7\n" in out


def test_an_option_that_there_is_not_is_named(imported):
    code, _, err, _ = imported("stages.sft", "--learning_rate=1")
    assert code == 2 and err.startswith("error: config: no option '--learning_rate=1'; settings are KEY=VALUE without")


def test_debug_is_read_from_the_command_line_before_there_is_a_config(monkeypatch, capsys, own_logging):
    for name in ("HYDRA_FULL_ERROR", "HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")  # what start sets is taken back after the test
    for arguments, shows in (([], False), (["run.debug=true"], True)):
        monkeypatch.setattr(sys, "argv", ["stage", "sft.learning_rat=1", *arguments])
        with pytest.raises(SystemExit) as ended:
            start("stages.sft")
        assert ended.value.code == UserError.exit_code
        assert ("Traceback" in capsys.readouterr().err) is shows

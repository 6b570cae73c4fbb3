import io
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from rlhf.errors import NumericsError, UserError
from rlhf.tracking.display import LiveBar, PlainLines
from rlhf.tracking.tracker import SilentTracker, Tracker, TrackerCallback, scrub

ROOT = Path(__file__).parents[2]
OFF = SimpleNamespace(wandb="disabled", project="rlhf", log_steps=1, num_samples=2)
OFFLINE = SimpleNamespace(wandb="offline", project="rlhf", log_steps=1, num_samples=2)


def make_tracker(folder, total_steps=4, tracking=OFF, config=None, **options) -> Tracker:
    return Tracker(folder, "sft", total_steps, tracking, config or {}, "toy", **options)


def read_lines(path) -> list[dict]:
    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def run_python(code: str, folder: Path, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


# ---- metrics.jsonl


def test_every_logged_step_is_one_line_of_strict_json_that_is_on_disk_at_once(tmp_path):
    with make_tracker(tmp_path) as tracker:
        tracker.log(1, {"loss": 0.5, "lr": np.float32(0.25), "kl": torch.tensor(2.0)})
        (first,) = read_lines(tmp_path / "metrics.jsonl")  # before the tracker is closed
        tracker.log(2, {"loss": math.nan, "reward": -math.inf, "count": 3})
    assert {name: first[name] for name in ("step", "loss", "lr", "kl")} == {
        "step": 1,
        "loss": 0.5,
        "lr": 0.25,
        "kl": 2.0,
    }
    second = read_lines(tmp_path / "metrics.jsonl")[1]
    assert second["time"] >= first["time"]
    assert (second["loss"], second["reward"], second["count"]) == (None, None, 3)


def test_a_resumed_stage_repeats_no_step_in_its_files(tmp_path):
    with make_tracker(tmp_path) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"loss": float(step)})
            tracker.log(step, {"eval/loss": float(step)})
            tracker.log_samples(step, [{"response": f"of step {step}"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')  # a kill in the middle of a line
    with make_tracker(tmp_path, first_step=2) as tracker:
        for step in (3, 4):
            tracker.log(step, {"loss": float(step)})
            tracker.log_samples(step, [{"response": f"of step {step}"}])
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 1, 2, 2, 3, 4]
    assert [line["step"] for line in read_lines(tmp_path / "samples.jsonl")] == [1, 2, 3, 4]


def test_half_a_line_is_cut_even_where_all_steps_are_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2\n\0\0\0')
    with make_tracker(tmp_path, first_step=9):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def test_a_stage_that_starts_anew_keeps_nothing_of_an_earlier_attempt(tmp_path):
    for _ in range(2):
        with make_tracker(tmp_path) as tracker:
            tracker.log(0, {"eval/loss": 3.0})
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_run_folder_that_is_a_file_is_one_line_naming_it(tmp_path):
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write .*/run/sft: .* is a file"),
        make_tracker(tmp_path / "run" / "sft"),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device of Linux")
def test_a_full_disk_stops_the_stage_with_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: no space left"),
        make_tracker(tmp_path) as tracker,
    ):
        tracker._metrics = open("/dev/full", "w")  # noqa: SIM115 (the tracker closes it)
        tracker.log(1, {"loss": 1.0})


# ---- the terminal


def test_output_that_is_no_terminal_is_plain_lines_and_the_last_step_is_always_shown(tmp_path, capsys):
    with make_tracker(tmp_path, total_steps=40, headline=["loss", "eval/loss"]) as tracker:
        for step in range(1, 41):
            tracker.log(step, {"loss": 1 / step, "hidden": 7.0})
    out = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in out)
    lines = out.splitlines()
    assert lines[0].startswith("sft 1/40  0:00 elapsed, 0:0") and lines[0].endswith("loss 1")
    assert lines[-1] == "sft 40/40  0:00 elapsed, 0:00 left  loss 0.025"
    assert len(lines) == 2 and "hidden" not in out  # nothing in between: less than five seconds


def test_plain_lines_come_every_five_seconds_with_the_time_left(capsys):
    now = [0.0]
    lines = PlainLines("ppo", 100, 10, ["kl", "reward"], clock=lambda: now[0])
    for step in range(11, 21):
        now[0] += 2.0
        lines.update(step, {"kl": float(step)} if step < 15 else {"reward": 2.0})
    lines.close()
    assert capsys.readouterr().out.splitlines() == [
        "ppo 11/100  0:02 elapsed, 2:58 left  kl 11",  # 89 steps of 2 seconds
        "ppo 14/100  0:08 elapsed, 2:52 left  kl 14",
        "ppo 17/100  0:14 elapsed, 2:46 left  kl 14  reward 2",
        "ppo 20/100  0:20 elapsed, 2:40 left  kl 14  reward 2",
    ]


def test_a_terminal_gets_a_bar_with_the_headline_metrics_below_it():
    screen = io.StringIO()
    bar = LiveBar(Console(file=screen, force_terminal=True, width=100), "ppo", 4, 2, ["kl", "reward"])
    bar.update(3, {"kl": 0.125, "reward": 2.0, "hidden": 1.0})
    bar.close()
    assert "3/4" in screen.getvalue() and "kl 0.125  reward 2" in screen.getvalue()


# ---- the Trainer's logs


def test_callback_forwards_the_trainers_logs_under_our_names(tmp_path):
    state = SimpleNamespace(global_step=3, max_steps=4)
    with make_tracker(tmp_path) as tracker:
        callback = TrackerCallback(tracker, {"num_tokens": None, "eval_pair_accuracy": "eval/accuracy"})
        callback.on_train_begin(None, state, None)
        callback.on_step_end(None, state, None)
        callback.on_log(
            None, state, None, {"loss": 2.0, "learning_rate": 0.1, "grad_norm": 0.5, "epoch": 1.0, "num_tokens": 9}
        )
        callback.on_log(None, state, None, {"eval_loss": 3.0, "eval_pair_accuracy": 0.75, "eval_runtime": 1.2})
        callback.on_log(None, state, None, {"train_runtime": 3.0, "train_loss": 2.0, "epoch": 1.0})
    lines = read_lines(tmp_path / "metrics.jsonl")
    values = [{name: value for name, value in line.items() if name not in ("step", "time")} for line in lines]
    assert values == [
        {"train/loss": 2.0, "lr": 0.1, "grad_norm": 0.5, "epoch": 1.0},
        {"eval/loss": 3.0, "eval/accuracy": 0.75},
    ]


@pytest.mark.parametrize("name", ["loss", "eval_loss", "grad_norm"])
def test_a_logged_loss_or_gradient_that_is_not_finite_stops_the_stage_at_its_step(tmp_path, name):
    state = SimpleNamespace(global_step=7, max_steps=8)
    with (
        make_tracker(tmp_path) as tracker,
        pytest.raises(NumericsError, match=rf"sft step 7: {name} is nan.*sft.learning_rate"),
    ):
        TrackerCallback(tracker).on_log(None, state, None, {name: math.nan})
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["step"] == 7 and None in line.values()


def test_a_rank_that_records_nothing_stops_at_such_a_loss_with_the_others():
    state = SimpleNamespace(global_step=7)
    with pytest.raises(NumericsError, match="sft step 7: loss is nan"):
        TrackerCallback(SilentTracker("sft")).on_log(None, state, None, {"loss": math.nan})


# ---- W&B


def test_scrubbing_drops_secrets_and_the_home_folder_and_nothing_else(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("HF_TOKEN", "hf_canary123")
    values = {
        "wandb": {"api_key": "k", "apiKey": "k", "password": "k", "hub_token": "k", "entity": "lab"},
        "path": "/home/ann/data/x.jsonl",
        "others": ["/home/anna/x", "/data/home/ann/x", "at /home/ann"],
        "url": "postgresql://ann:pw@db.example/rankings",
        "text": "key is hf_canary123!",
        "data": {"max_prompt_tokens": 48, "tokenizer_sha256": "abc"},
        "lr": 0.1,
        "packing": False,
    }
    assert scrub(values) == {
        "wandb": {"entity": "lab"},
        "path": "~/data/x.jsonl",
        "others": ["/home/anna/x", "/data/home/ann/x", "at ~"],
        "url": "postgresql://***@db.example/rankings",
        "text": "key is ***!",
        "data": {"max_prompt_tokens": 48, "tokenizer_sha256": "abc"},
        "lr": 0.1,
        "packing": False,
    }


def test_without_wandb_its_package_is_not_even_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it would raise
    with make_tracker(tmp_path) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.log_samples(1, [{"response": "x"}])
        tracker.link_artifact(tmp_path / "manifest.json")
    assert capsys.readouterr().err == ""
    code = "import sys, rlhf.tracking.wandb_run, rlhf.tracking.display; assert 'wandb' not in sys.modules"
    assert run_python(code, tmp_path).returncode == 0


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a telling name, as the current folder, and a secret in the environment."""
    home = tmp_path / "home-of-canary-ann"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_API_KEY", "canary-key-0123456789")
    for name in ("WANDB_MODE", "WANDB_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # W&B sets its own
    return home


def test_an_offline_run_records_config_metrics_samples_and_manifest_but_no_secret_and_no_home_path(home, capfd):
    import wandb

    stage_dir = home / "run" / "sft"
    config = {
        "sft": {"learning_rate": 0.0625},
        "model": {"path": f"{home}/models/x"},
        "note": "uses canary-key-0123456789",
    }
    with make_tracker(stage_dir, tracking=OFFLINE, config=config) as tracker:
        tracker.log(1, {"loss": 0.5, "bad": math.nan})
        dialogue = [{"role": "user", "content": "hi"}, {"role": "user", "content": "where is it"}]
        tracker.log_samples(1, [{"prompt": dialogue, "response": "in the post"}])
        (stage_dir / "manifest.json").write_text(
            json.dumps({"base_model": f"{home}/models/x", "metrics": {"loss": 0.5}})
        )
        tracker.link_artifact(stage_dir / "manifest.json")
    wandb.teardown()
    (run_file,) = stage_dir.glob("wandb/offline-run-*/*.wandb")
    recorded = run_file.read_bytes()
    for wanted in (b"learning_rate", b"0.0625", b"toy-sft", b"media/table/samples", b"~/models/x", b"manifest.json"):
        assert wanted in recorded
    (table,) = stage_dir.rglob("samples_*.table.json")
    assert json.loads(table.read_text())["data"] == [["user: hi\n\nuser: where is it", "in the post"]]
    assert read_lines(stage_dir / "samples.jsonl")[0]["prompt"] == dialogue
    for path in (path for path in stage_dir.rglob("wandb/**/*") if path.is_file()):
        assert b"canary" not in path.read_bytes(), path
    out, err = capfd.readouterr()
    assert err == "" and out.startswith("sft 1/4")


def test_a_resumed_stage_goes_on_in_the_same_wandb_run(home):
    import wandb

    ids = []
    for first_step in (0, 2, 0):
        with make_tracker(home / "sft", tracking=OFFLINE, first_step=first_step):
            ids.append((home / "sft" / "checkpoints" / "wandb_id").read_text())
    wandb.teardown()
    assert ids[0] == ids[1] != ids[2]


def test_wandb_takes_no_random_numbers_from_the_run(home):
    import wandb

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with make_tracker(home / "sft", tracking=OFFLINE) as tracker:
        tracker.log(1, {"loss": 0.5})
        tracker.log_samples(1, [{"response": "x"}])
    wandb.teardown()
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())


def test_a_dying_wandb_costs_one_warning_and_nothing_else(home):
    code = """
import os, signal, subprocess
from pathlib import Path
from rlhf.tracking.wandb_run import WandbRun
run = WandbRun(Path("sft"), "sft", "toy", mode="offline", project="p", config={}, resumed=False)
run.log(1, {"loss": 1.0})
children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True).stdout
(core,) = [int(line.split()[0]) for line in children.splitlines() if "wandb" in line]
os.kill(core, signal.SIGKILL)
os.waitpid(core, 0)
for step in range(2, 6):
    run.log(step, {"loss": 1.0})
run.log_table(6, "samples", [{"a": 1}])
run.finish(failed=False)
print("done")
"""
    done = run_python(code, home)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr.startswith("W&B stopped (") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_without_a_server_or_an_account_an_online_run_goes_on_offline_and_keeps_everything(home):
    code = """
import rlhf.tracking.wandb_run
from pathlib import Path
settings = rlhf.tracking.wandb_run._settings
rlhf.tracking.wandb_run._settings = lambda *a, **k: settings(*a, **k).model_copy(update={"init_timeout": 1})
run = rlhf.tracking.wandb_run.WandbRun(Path("sft"), "sft", "toy", mode="online", project="p", config={}, resumed=False)
run.log(1, {"loss_of_step_one": 1.0})
run.finish(failed=False)
"""
    for key in ("a" * 40, ""):
        done = run_python(code, home, WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:9")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("W&B cannot go online (") and done.stderr.count("\n") == 1
        assert "this run is kept offline, `wandb sync sft/wandb/offline-run-*` sends it later" in done.stderr
    runs = [path.read_bytes() for path in home.glob("sft/wandb/offline-run-*/*.wandb")]
    assert len(runs) == 2 and all(b"loss_of_step_one" in run and b"canary" not in run for run in runs)

"""A folder's lock: one holder, who is named; the dead hold nothing; nothing stays behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from rlhf.errors import UserError
from rlhf.locks import LOCK, alone_in_run_dir, locked

HOLD = """
import sys, time
from pathlib import Path
from rlhf.locks import locked
with locked(Path(sys.argv[1]), "wait"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def take(folder, patience=0.0):
    with locked(folder, "choose another run.dir", patience):
        return True


def test_a_folder_in_use_is_refused_with_who_holds_it_since_when_and_the_remedy(holder, tmp_path):
    message = (
        rf"^{tmp_path}/run is in use by process {holder.pid} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d "
        rf"\(-c {tmp_path}/run\); wait for its end, stop it, or choose another run.dir$"
    )
    with pytest.raises(UserError, match=message):
        take(tmp_path / "run")
    assert holder.poll() is None and (tmp_path / "run" / LOCK).exists()


def test_a_holder_on_another_machine_is_named_with_it(holder, tmp_path):
    path = tmp_path / "run" / LOCK
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "node7"}))
    with pytest.raises(UserError, match=f"process {holder.pid} on node7 since"):
        take(tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_dead_process_holds_nothing(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait()
    assert take(tmp_path / "run")


def test_a_copy_of_a_folder_in_use_is_free(holder, tmp_path):
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert take(tmp_path / "copy")


def test_the_lock_goes_with_a_folder_that_is_moved(holder, tmp_path):
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="moved is in use by process"):
        take(tmp_path / "moved")


def test_with_patience_the_end_of_the_other_process_is_waited_for(holder, tmp_path):
    with pytest.raises(UserError, match="is in use by process"):
        take(tmp_path / "run", patience=0.2)
    threading.Timer(0.3, holder.kill).start()
    assert take(tmp_path / "run", patience=60)


def test_nothing_stays_behind(tmp_path):
    take(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "sft").mkdir(parents=True)
    take(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["sft"]


def test_an_unreadable_lock_file_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text("\0 half a rec")
    assert take(tmp_path / "run")


def test_one_of_many_at_once_holds_it_at_a_time(tmp_path):
    inside, most, rounds = [], [], 200

    def work():
        for _ in range(rounds):
            try:
                with locked(tmp_path / "run", "wait"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except UserError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_passwords_in_the_command_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["collect", "export", "--database", "postgresql://ann:secret@host/db"])
    with locked(tmp_path, "wait"):
        command = json.loads((tmp_path / LOCK).read_text())["command"]
    assert command.endswith("export --database postgresql://...@host/db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_who_cannot_write_needs_no_lock(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    assert take(tmp_path / "run")


def test_a_file_in_the_place_of_the_folder_is_left_to_who_writes_there(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert take(tmp_path / "run") and (tmp_path / "run").read_text() == "mine"


# ---- a run of stages


def config(folder, preflight=False):
    return SimpleNamespace(run=SimpleNamespace(dir=str(folder)), preflight=preflight)


@alone_in_run_dir
def stage(cfg):
    return (cfg.run.dir, os.path.exists(f"{cfg.run.dir}/{LOCK}"))


@alone_in_run_dir
def pipeline(cfg):
    return stage(cfg)


def test_a_pipeline_holds_the_folder_for_its_own_stages(tmp_path):
    assert pipeline(config(tmp_path)) == (str(tmp_path), True)
    assert stage(config(tmp_path)) == (str(tmp_path), True)  # and afterwards lets it go
    assert not (tmp_path / LOCK).exists()


def test_a_stage_in_a_folder_in_use_does_not_run(holder, tmp_path):
    with pytest.raises(UserError, match="is in use by process"):
        stage(config(tmp_path / "run"))


def test_another_thread_of_the_same_process_is_another_holder(tmp_path):
    def in_thread():
        try:
            stage(config(tmp_path))
        except UserError as error:
            seen.append(str(error))

    seen = []
    with locked(tmp_path, "wait"):
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
    assert f"in use by process {os.getpid()}" in seen[0]


def test_a_preflight_writes_nothing_and_is_never_refused(holder, tmp_path):
    assert stage(config(tmp_path / "run", preflight=True)) == (f"{tmp_path}/run", True)

"""What an error costs: the command as its message has it goes on in the same folder."""

import shutil
import signal

import pytest
from tiny_world import records, write_jsonl

from rlhf.artifacts.manifest import verify
from rlhf.errors import Stopped
from rlhf.tracking.tracker import Tracker
from stages import sft


def test_a_mistake_in_the_data_does_not_stand_in_its_remedys_way(tiny_command, tmp_path):
    rows = [{"question": row["prompt"], "reply": row["completion"]} for row in records()["demonstrations"]]
    source = f"data.demonstrations={write_jsonl(tmp_path / 'mine.jsonl', rows)}"
    refused = tiny_command("sft", source)
    assert refused.code == 2 and "+data.fields.prompt=" in refused.error
    mended = tiny_command("sft", source, "+data.fields.prompt=question", "+data.fields.completion=reply")
    assert mended.code == 0 and verify(tmp_path / "run" / "sft")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["sft"]  # nothing had to move aside


def test_who_stops_a_run_that_was_to_begin_anew_is_told_to_leave_that_out(config, monkeypatch, tmp_path):
    def log_and_stop(self, step, metrics):
        log(self, step, metrics)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    log = Tracker.log
    monkeypatch.setattr(Tracker, "log", log_and_stop)
    with pytest.raises(Stopped, match=r"saved; the same command without run\.resume=never goes on from there"):
        sft.run(config("run.resume=never"))
    monkeypatch.setattr(Tracker, "log", log)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    sft.run(config())
    assert not (tmp_path / "run" / "replaced").exists()
    sft.run(config("run.resume=never", f"run.dir={tmp_path}/other"))
    assert [path.name[:4] for path in (tmp_path / "other" / "replaced").iterdir()] == ["sft-"]

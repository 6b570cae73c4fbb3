"""What a collection writes is nobody else's to read: not for a moment, and not after a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from collect_world import NOW, add_ranked_items

from reward.collect.__main__ import main
from reward.collect.export.versions import export_version
from reward.collect.home import one_at_a_time
from reward.collect.integrity.backup import backup
from reward.collect.store import private
from reward.collect.store.database import Database
from reward.collect.store.tables import Collection


@pytest.fixture(autouse=True)
def careless_umask():
    """As of a machine where all may read what is made, unless its maker says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of a collection with rankings."""
    folder = tmp_path / "above" / "collect"
    assert main(["init", "--dir", str(folder), "--gold-share", "0"]) == 0
    database = Database(f"sqlite:///{folder}/collect.db")
    add_ranked_items(database, 3, handles=("ann", "bob"))
    database.close()
    return folder


def run(folder: Path, command: str, *arguments) -> None:
    assert main([command, "--dir", str(folder), *map(str, arguments)]) == 0


def readable(folder: Path) -> list[str]:
    """What is open to others. What lies in a workspace that is closed to them is not."""
    found = [path for path in [folder, *folder.rglob("*")] if path.stat().st_mode & 0o077]
    return [str(path) for path in found if not is_closed_workspace(path.parent)]


def is_closed_workspace(path: Path) -> bool:
    return path.name.startswith((".making-", ".unfinished-")) and path.stat().st_mode & 0o777 == 0o700


def test_all_that_a_collection_writes_is_its_owner_s_alone(folder, tmp_path):
    run(folder, "export")
    run(folder, "backup")
    database = Database(f"sqlite:///{folder}/collect.db")
    with one_at_a_time(folder), database.write() as session:
        session.get_one(Collection, 1)
        names = {path.name for path in folder.iterdir()}
        assert names == {"collect.db", "collect.db-wal", "collect.db-shm", "versions", "backups", ".lock"}
        assert readable(folder) == []
    database.close()


def test_files_that_are_written_elsewhere_are_private_too(folder, tmp_path):
    run(folder, "export", "--format", "csv", "--out", tmp_path / "rankings.csv")
    run(folder, "import", "--rankings", "canonical", folder / "versions/1/rankings.jsonl", "--to", tmp_path / "r.jsonl")
    run(folder, "backup", "--to", tmp_path / "away")
    files = [tmp_path / "rankings.csv", tmp_path / "r.jsonl", tmp_path / "away"]
    assert [path.name for path in files if not path.exists() or readable(path)] == []


def test_a_folder_above_a_collection_stays_open_to_all(folder):
    assert folder.parent.stat().st_mode & 0o777 == 0o777


KILLED_AT_RENAME = """
import os, sys
def die(event, arguments):
    if event == "os.rename":
        os._exit(9)
sys.addaudithook(die)
from reward.collect.__main__ import main
main(sys.argv[1:])
"""
ALL_BUT_DONE = {
    "backup": (["backup"], "backups"),
    "export": (["export"], "versions"),
    "out": (["export", "--format", "trl", "--out", "{folder}/out/pairs.jsonl"], "out"),
}


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith((".making-", ".unfinished-"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_BUT_DONE)
def test_what_a_kill_leaves_is_private_and_the_next_run_removes_it(folder, name):
    (command, *options), place = ALL_BUT_DONE[name]
    (folder / "out").mkdir(0o700)
    if name == "out":
        run(folder, "export")
    arguments = [command, "--dir", str(folder), *(one.format(folder=folder) for one in options)]
    assert subprocess.run([sys.executable, "-c", KILLED_AT_RENAME, *arguments]).returncode == 9
    (left,) = unfinished(folder / place)
    assert any(path.stat().st_size for path in left.iterdir())
    assert readable(folder) == []
    assert main(arguments) == 0
    assert not left.exists() and unfinished(folder / place) == []


def test_what_another_process_is_at_work_on_is_not_removed(tmp_path):
    with private.workspace(tmp_path) as first, private.workspace(tmp_path) as second:
        assert first.is_dir() and second.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_named_as_unfinished_is_removed(tmp_path):
    for name in (".unfinished-mine", "unfinished", ".pairs.jsonl.tmp", ".collect-1.db.tmp"):
        (tmp_path / name).write_text("")
    with private.workspace(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".unfinished-mine", "unfinished", ".pairs.jsonl.tmp"}


def test_a_version_is_private_while_the_server_makes_it_too(folder):
    database = Database(f"sqlite:///{folder}/collect.db")
    assert readable(export_version(database, folder, "lead", NOW)[0]) == []
    assert readable(backup(database, folder / "backups", NOW)[0]) == []
    database.close()


# Collections of the first release


def open_as_the_first_release_left_it(folder):
    run(folder, "backup")
    for path in (folder / "backups", folder / "collect.db", *(folder / "backups").iterdir()):
        path.chmod(path.stat().st_mode | 0o044)


def test_init_closes_what_an_earlier_release_left_open(folder, capsys):
    open_as_the_first_release_left_it(folder)
    run(folder, "init")
    assert "collect.db: others on this machine could read it, and cannot any more" in capsys.readouterr().out
    assert readable(folder / "collect.db") == [] and [readable(one) for one in (folder / "backups").iterdir()] == [[]]

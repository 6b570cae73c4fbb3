"""kill -9 of the server under load: no acknowledged submission is lost, on SQLite and on PostgreSQL."""

import os

import kill_commands
import kill_server
import pytest

pytestmark = pytest.mark.slow


def test_no_acknowledged_submission_is_lost_when_the_server_is_killed(tmp_path, database_url):
    *kills, end = list(kill_server.trials(tmp_path, 2, database_url))
    assert all(record["acknowledged"] > 0 for record in kills)
    assert [record["lost"] for record in [*kills, end]] == [[], [], []]
    assert end["uneven"] == 0


def test_a_lost_submission_would_be_found(tmp_path):
    url = f"sqlite:///{tmp_path}/collect.db"
    kill_server.prepare(url, 1, 1)
    assert kill_server.lost(url, [kill_server.Acknowledged("gone", {"a": 1}, 0.1)]) == ["gone"]


def test_a_killed_command_loses_nothing_and_leaves_nothing_for_others(tmp_path):
    before = os.umask(0)
    try:
        records = list(kill_commands.trials(tmp_path / "collect", 1, commands=("export", "backup", "import")))
    finally:
        os.umask(before)
    assert [record["kills"] for record in records] == [1, 1, 1]
    assert [(record["lost"], record["open"], record["left"]) for record in records] == [([], [], [])] * 3

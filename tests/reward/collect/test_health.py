"""/readyz: looked at no more often than once a second, and not fooled by a full disk."""

import os

import pytest
from browsers import client

from reward.collect.refusals import Unavailable
from reward.collect.store import database as databases
from reward.collect.web.health import PROBE_EVERY, Readiness


@pytest.fixture
def sqlite(tmp_path, make_collection):
    return make_collection(f"sqlite:///{tmp_path}/collect.db")


def full_disk(tmp_path):
    """A file that takes no byte: what a full disk does to every write."""
    os.symlink("/dev/full", tmp_path / "collect.db.trial")


def test_a_disk_that_takes_no_more_bytes_is_not_ready(sqlite, tmp_path):
    assert client(sqlite).get("/readyz").status_code == 200
    full_disk(tmp_path)
    refused = client(sqlite).get("/readyz")
    assert refused.status_code == 503
    assert f"the disk does not take {databases.ROOM} more bytes (No space left on device)" in refused.text


def test_nothing_is_left_of_the_trial(sqlite, tmp_path):
    client(sqlite).get("/readyz")
    assert not (tmp_path / "collect.db.trial").exists()


def test_asked_again_and_again_it_looks_once_a_second(sqlite, tmp_path):
    at = [100.0]
    readiness = Readiness(sqlite, lambda: at[0])
    found = readiness.collection()
    full_disk(tmp_path)
    at[0] += PROBE_EVERY - 0.1
    assert readiness.collection() == found
    at[0] += 0.2
    with pytest.raises(Unavailable, match="does not take"):
        readiness.collection()


def test_ready_again_once_there_is_room(sqlite, tmp_path):
    at = [100.0]
    full_disk(tmp_path)
    readiness = Readiness(sqlite, lambda: at[0])
    with pytest.raises(Unavailable):
        readiness.collection()
    at[0] += 2 * PROBE_EVERY  # the trial has taken its file away
    assert readiness.collection()

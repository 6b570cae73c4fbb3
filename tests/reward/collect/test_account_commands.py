"""Accounts from the command line: listed, paused, signed out, and what opens them revoked."""

import re
import time

import pytest
from browsers import join

from reward.collect.__main__ import main
from reward.collect.people import sessions, tokens
from reward.collect.people.sessions import Client
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotator


@pytest.fixture
def folder(tmp_path):
    """Of a collection with a lead, and ann, who has a browser and a token."""
    folder = tmp_path / "collect"
    assert main(["init", "--dir", str(folder)]) == 0
    database = Database(f"sqlite:///{folder}/collect.db")
    join(database, "lea", "lead", now=0.0)
    ann = join(database, "ann", now=0.0)
    with database.write() as session:
        sessions.open_session(session, ann.id, time.time(), Client("10.0.0.1", "Firefox/1 Linux"))
        tokens.create_token(session, session.get_one(Annotator, ann.id), ["annotate"], 3, time.time())
    database.close()
    return folder


@pytest.fixture
def run(folder, capsys):
    def run(command, *arguments, code=0):
        capsys.readouterr()
        assert main([command, "--dir", str(folder), *arguments]) == code
        return "".join(capsys.readouterr())

    return run


def test_accounts_lists_all_and_what_is_open_for_them(run):
    run("invite")
    told = run("accounts")
    assert re.search(r"^ann: annotator, active; 1 browser, seen .*, 1 token$", told, re.MULTILINE)
    assert "lea: lead, active; 0 browsers, 0 tokens" in told
    assert re.search(r"^invite [0-9a-f]{12}: for a new annotator, until ", told, re.MULTILINE)


def test_accounts_pauses_resumes_promotes_and_signs_out_one_person(run):
    told = run("accounts", "ann")
    assert "browser" in told and "Firefox on Linux at 10.0.0.1" in told and "token" in told
    assert "ann: annotator, paused" in run("accounts", "ann", "--pause")
    assert "Your work here is paused" in run("token", "ann", "--scope", "annotate", code=2)
    told = run("accounts", "ann", "--resume", "--role", "lead", "--sign-out")
    assert "ann: lead, active" in told and "browser" not in told and "token" not in told


def test_the_last_active_lead_stays_one(run):
    assert "lea is the last active lead" in run("accounts", "lea", "--pause", code=2)
    assert "--pause: of whom? Name the account" in run("accounts", "--pause", code=2)


def test_revoke_ends_a_browser_a_token_and_an_invite_by_the_beginning_of_their_ids(run):
    run("invite")
    listed = run("accounts") + run("accounts", "ann")
    ids = dict(re.findall(r"^(invite|browser|token) ([0-9a-f]{12})", listed, re.MULTILINE))
    told = run("revoke", *ids.values())
    assert sorted(told.splitlines()) == sorted(f"{kind} {id}: ended" for kind, id in ids.items()) and len(ids) == 3
    assert "nothing that opens an account has this id" in run("revoke", ids["token"], code=2)
    left = run("accounts")
    assert "invite" not in left and "ann: annotator, active; 0 browsers, 0 tokens" in left

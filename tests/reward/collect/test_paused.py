"""A paused person stores nothing, and is told why."""

import pytest
from browsers import PASSWORD, browser_of, client, join, sign_in
from collect_world import NOW, add_new_items, add_people, body, do, hand_in, take
from sqlalchemy import func, select

from reward.collect.people import accounts, sessions
from reward.collect.ranking import annotations, queue
from reward.collect.ranking.submissions import parse_submission
from reward.collect.refusals import Forbidden
from reward.collect.store.tables import Annotation, Annotator, Audit, Draft, Flag, Session, Skip


@pytest.fixture
def held(database):
    """(ann, what ann holds, a ranking that ann has submitted); ann was paused since."""
    add_new_items(database, 2)
    (ann,) = add_people(database, "ann")
    ranking = hand_in(database, ann, take(database, ann))
    work = take(database, ann)
    do(database, accounts.set_status, ann.id, "paused", "command line", NOW)
    return ann, work, ranking


def counts(database) -> list[int]:
    with database.read() as session:
        tables = (Annotation, Draft, Skip, Flag, Audit)
        return [session.scalar(select(func.count()).select_from(table)) for table in tables]


def test_a_paused_person_stores_nothing(database, held):
    ann, work, ranking = held
    submission, before = parse_submission(body(work)), counts(database)
    again = parse_submission({"ranks": ranking.ranks, "comment": "on second thoughts"})
    tried = [
        (annotations.submit, work.slot_id, submission, "0123456789", NOW),
        (annotations.revise, ranking.id, again, "9876543210", NOW),
        (annotations.save_draft, work.slot_id, {"ranks": {}}, 0, NOW),
        (queue.skip, work.slot_id, "too hard", NOW),
        (queue.flag, work.slot_id, None, "odd", "", NOW),
        (queue.renew, work.slot_id, NOW),
    ]
    for function, *arguments in tried:
        with pytest.raises(Forbidden, match="Your work here is paused"):
            do(database, function, ann, *arguments)
    assert counts(database) == before


def test_who_is_resumed_goes_on_where_they_were(database, held):
    ann, work, _ = held
    do(database, accounts.set_status, ann.id, "active", "command line", NOW)
    assert hand_in(database, ann, work).slot_id == work.slot_id


@pytest.fixture
def sqlite(tmp_path, make_collection):
    return make_collection(f"sqlite:///{tmp_path}/collect.db")


def test_every_page_tells_a_paused_person_so(sqlite):
    alice = browser_of(sqlite, "alice")
    with sqlite.write() as session:
        person = session.scalar(select(Annotator).where(Annotator.handle == "alice"))
        accounts.set_status(session, person.id, "paused", "command line", NOW)
    for path in ("/rank", "/history", "/account"):
        assert "Your work here is paused: nothing that you enter is stored" in alice.get(path).text
    refused = alice.post("/account/tokens", data={"scope": "annotate", "days": "3"})
    assert refused.status_code == 403 and "Your work here is paused" in refused.text


# The pages of accounts


def test_a_person_sees_and_ends_their_own_browsers_and_tokens(sqlite):
    alice = browser_of(sqlite, "alice")
    other = client(sqlite)
    sign_in(other, "alice")
    assert alice.get("/account").text.count("data-browser=") == 2
    made = alice.post("/account/tokens", data={"scope": "annotate", "days": "3"})
    assert made.status_code == 201 and made.text.count('data-testid="token">collect_') == 1
    assert alice.post("/account/sign-out-others").status_code == 303
    assert alice.get("/account").text.count("data-browser=") == 1
    assert other.get("/account").headers["location"].startswith("/sign-in")


def test_a_new_password_keeps_this_browser_and_no_other(sqlite):
    alice, other = browser_of(sqlite, "alice"), client(sqlite)
    sign_in(other, "alice")
    new = {"password": "another long password", "password_again": "another long password"}
    assert alice.post("/account/password", data=new | {"present": "not the password"}).status_code == 422
    assert alice.post("/account/password", data=new | {"present": PASSWORD}).headers["location"] == "/account"
    assert alice.get("/account").status_code == 200
    assert other.get("/account").status_code == 303


def test_a_browser_that_was_signed_in_once_is_not_locked_out_by_failures_at_its_address(sqlite):
    join(sqlite, "alice")
    own, other = client(sqlite), client(sqlite)
    sign_in(own, "alice")
    assert [sign_in(other, "alice", "not the password").status_code for _ in range(11)] == [401] * 10 + [429]
    own.cookies.delete(next(name for name in own.cookies if "known" not in name))
    assert sign_in(own, "alice").status_code == 303


def test_a_lead_pauses_resumes_and_promotes_whom_the_list_shows(sqlite):
    lea, alice = browser_of(sqlite, "lea", "lead"), join(sqlite, "alice")
    page = f"/lead/accounts/{alice.id}"
    told = lambda: lea.get("/lead/accounts").text.partition('data-account="alice"')[2].partition("</tr>")[0]  # noqa: E731
    assert "<td>annotator</td><td>active</td>" in told()
    lea.post(page, data={"status": "paused"})
    assert "<td>annotator</td><td>paused</td>" in told()
    lea.post(page, data={"status": "active"})
    lea.post(page, data={"role": "lead"})
    assert "<td>lead</td><td>active</td>" in told()
    own = lea.post("/lead/accounts/nobody", data={"role": "annotator"})
    assert own.status_code == 404 and "does not exist" in own.text


def test_a_lead_signs_others_out_and_revokes_tokens_and_invites(sqlite):
    lea, alice = browser_of(sqlite, "lea", "lead"), browser_of(sqlite, "alice")
    alice.post("/account/tokens", data={"scope": "annotate", "days": "3"})
    lea.post("/lead/invites", data={"role": "annotator", "days": "3"})
    listed = lea.get("/lead/accounts").text
    actions = [one.partition('"')[0] for one in listed.split('action="')[1:]]
    ending = [one for one in actions if one.endswith(("/sign-out", "/revoke", "/end")) and one.startswith("/lead")]
    assert len(ending) == 3
    assert [lea.post(one).status_code for one in ending] == [303] * 3
    assert alice.get("/account").status_code == 303
    assert "None. " in lea.get("/lead/accounts").text


def test_a_collection_of_the_first_release_goes_on_with_its_rankings_and_its_sessions(database):
    add_new_items(database, 1)
    (ann,) = add_people(database, "ann")
    ranking = hand_in(database, ann, take(database, ann))
    secret = do(database, sessions.open_session, ann.id, NOW)
    with database.write() as session:
        for table, name in (("session", "address"), ("session", "browser"), ("audit", "written")):
            session.connection().exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {name}")
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    database.upgrade()
    database.require_schema()
    with database.read() as session:
        assert sessions.signed_in(session, secret, NOW)[0].id == ann.id
        assert session.scalars(select(Session)).one().browser == ""
        assert session.scalars(select(Annotation)).one().id == ranking.id

"""Accounts: links work once, passwords are only hashed, failed attempts count, and tokens open what they say."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from reward.collect import accounts
from reward.collect.refusals import Forbidden, NotFound, NotSignedIn, Refusal, TooMany
from reward.collect.tables import Annotator, Audit, Invite, Session, SignInFailure, Token

DAY, HOUR = 86400, 3600
PASSWORD = "correct horse battery"


def invite(database, role="annotator", days=7, now=0.0) -> str:
    with database.write() as session:
        return accounts.create_invite(session, role, days, "command line", now)


def join(database, handle="alice", role="annotator", password=PASSWORD, now=0.0) -> Annotator:
    with database.write() as session:
        secret = accounts.create_invite(session, role, 7, "command line", now)
        return accounts.accept_invite(session, secret, handle, password, now)


def accept(database, secret, handle="alice", password=PASSWORD, now=0.0) -> Annotator:
    with database.write() as session:
        return accounts.accept_invite(session, secret, handle, password, now)


def sign_in(database, handle="alice", password=PASSWORD, address="10.0.0.1", now=0.0) -> str:
    return accounts.sign_in(database, handle, password, address, now)


def fail(database, times, **attempt):
    for _ in range(times):
        with pytest.raises(NotSignedIn, match="Handle or password is wrong"):
            sign_in(database, password="not the password", **attempt)


# Invites


def test_an_invite_makes_one_account_of_its_role(database):
    secret = invite(database, "lead")
    assert accept(database, secret).role == "lead"
    with pytest.raises(NotFound, match="already used"):
        accept(database, secret, "bob")


def test_an_invite_expires(database):
    secret = invite(database, days=2)
    with database.read() as session:
        assert accounts.usable_invite(session, secret, 2 * DAY - 1).role == "annotator"
    with pytest.raises(NotFound, match="has expired"):
        accept(database, secret, now=2 * DAY)


def test_the_first_lead_ends_the_other_links_for_leads(database):
    first, other, annotator = invite(database, "lead"), invite(database, "lead"), invite(database)
    accept(database, first)
    with pytest.raises(NotFound, match="has expired"):
        accept(database, other, "mallory")
    assert accept(database, annotator, "bob").role == "annotator"


def test_a_lead_s_links_for_leads_stay_when_another_lead_comes(database):
    join(database, "alice", "lead")
    secrets = [invite(database, "lead") for _ in range(2)]
    assert [accept(database, one, f"lead{i}").role for i, one in enumerate(secrets)] == ["lead", "lead"]


def test_who_forgot_the_password_keeps_the_account_and_chooses_another(database):
    alice = accept(database, invite(database), "alice")
    before = sign_in(database)
    with database.write() as session:
        secret = accounts.create_reset(session, accounts.person_named(session, "alice"), 7, "command line", 0.0)
    with database.write() as session:
        assert accounts.accept_invite(session, secret, "", "another long password", 0.0).id == alice.id
    with database.read() as session:
        assert accounts.signed_in(session, before, 0.0) is None
    with pytest.raises(NotSignedIn):
        sign_in(database)
    assert sign_in(database, password="another long password")
    with pytest.raises(NotFound, match="already used"):
        accept(database, secret, "bob")


def test_an_unknown_invite_is_told_so(database):
    with pytest.raises(NotFound, match="not known here"):
        accept(database, "no such secret")


def test_of_two_who_use_one_invite_at_once_one_gets_in(database):
    secret = invite(database)

    def outcome(handle):
        try:
            return accept(database, secret, handle).handle
        except NotFound:
            return None

    with ThreadPoolExecutor(8) as pool:
        joined = list(pool.map(outcome, [f"person{i}" for i in range(8)]))
    assert sum(handle is not None for handle in joined) == 1
    with database.read() as session:
        assert len(session.scalars(select(Annotator)).all()) == 1


@pytest.mark.parametrize("role, days, words", [("admin", 7, "role 'admin' is unknown"), ("lead", 0, "days is 0")])
def test_an_invite_of_no_sense_is_refused(database, role, days, words):
    with pytest.raises(Refusal, match=words):
        invite(database, role, days)


# Handles and passwords


def test_a_refused_password_leaves_the_invite_unused(database):
    secret = invite(database)
    with pytest.raises(Refusal, match="the password has 9 characters; it must have 10 to 1000"):
        accept(database, secret, password="123456789")
    with pytest.raises(Refusal, match="the password is the handle"):
        accept(database, secret, "alice-in-wonderland", "Alice-in-Wonderland")
    accept(database, secret)


def test_a_handle_is_one_person_whatever_its_case(database):
    join(database, "Alice")
    with pytest.raises(Refusal, match="handle 'alice' is taken") as refused:
        join(database, " aLICE ")
    assert refused.value.fields == {"handle": "taken"}
    sign_in(database, "ALICE")


@pytest.mark.parametrize("handle", ["a", "a" * 33, "with space", "<script>", "-alice", "ünal", "a\nb", ""])
def test_a_handle_of_other_characters_is_refused(database, handle):
    with pytest.raises(Refusal, match="cannot be used; choose 2 to 32 of"):
        join(database, handle)


def test_no_secret_is_stored_as_it_is(database):
    invitation = invite(database)
    person = accept(database, invitation)
    cookie = sign_in(database)
    with database.write() as session:
        token, _ = accounts.create_token(session, person, ["annotate"], 1, 0.0)
    with database.read() as session:
        tables = (Annotator, Invite, Session, Token, Audit, SignInFailure)
        stored = str([vars(row) for table in tables for row in session.scalars(select(table))])
        assert session.get(Annotator, person.id).password_hash.startswith("$argon2id$")
    for secret in (invitation, PASSWORD, cookie, token):
        assert secret not in stored


# Signing in


def test_the_right_password_signs_in_and_the_wrong_one_does_not(database):
    person = join(database)
    with database.read() as session:
        assert accounts.signed_in(session, sign_in(database), 0.0)[0].id == person.id
        assert accounts.signed_in(session, "no such secret", 0.0) is None
    fail(database, 1)
    fail(database, 1, handle="nobody")


def test_a_session_ends_eight_hours_after_it_was_last_seen(database):
    join(database)
    secret = sign_in(database, now=0.0)
    with database.write() as session:
        accounts.mark_seen(session, accounts.signed_in(session, secret, 7 * HOUR)[1], 7 * HOUR)
    with database.read() as session:
        assert accounts.signed_in(session, secret, 15 * HOUR - 1)
        assert accounts.signed_in(session, secret, 15 * HOUR) is None


def test_signing_in_removes_sessions_that_ended(database):
    join(database)
    sign_in(database, now=0.0)
    sign_in(database, now=8 * HOUR)
    with database.read() as session:
        assert len(session.scalars(select(Session)).all()) == 1


def test_signing_out_ends_this_session_only(database):
    join(database)
    here, there = sign_in(database), sign_in(database)
    with database.write() as session:
        accounts.sign_out(session, here)
    with database.read() as session:
        assert accounts.signed_in(session, here, 0.0) is None
        assert accounts.signed_in(session, there, 0.0)


def test_after_ten_failures_even_the_right_password_waits_a_quarter_of_an_hour(database):
    join(database)
    fail(database, 10, now=100.0)
    with pytest.raises(TooMany, match="Wait 15 minutes") as refused:
        sign_in(database, now=101.0)
    assert 899 <= refused.value.retry_after <= 900
    sign_in(database, now=100.0 + 15 * 60)


def test_ten_failures_of_an_unknown_handle_look_the_same(database):
    fail(database, 10, handle="nobody")
    with pytest.raises(TooMany):
        sign_in(database, "nobody")


def test_an_address_that_tries_many_handles_waits_and_others_do_not(database):
    join(database)
    for i in range(50):
        fail(database, 1, handle=f"guess{i}")
    with pytest.raises(TooMany):
        sign_in(database, address="10.0.0.1")
    sign_in(database, address="10.0.0.2")


def test_success_forgets_the_failures_of_the_handle(database):
    join(database)
    fail(database, 9)
    assert sign_in(database)
    fail(database, 9)
    assert sign_in(database)


def test_success_does_not_forget_the_failures_of_the_address(database):
    """Else somebody with an account could guess others' passwords for ever."""
    join(database)
    for i in range(49):
        fail(database, 1, handle=f"guess{i}")
    sign_in(database)
    fail(database, 1, handle="guess49")
    with pytest.raises(TooMany):
        sign_in(database)


def test_many_guesses_at_once_count_one_by_one(database):
    join(database)

    def outcome(i):
        try:
            sign_in(database, password=f"guess number {i}")
        except Refusal as error:
            return type(error)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, range(24)))
    assert outcomes.count(NotSignedIn) == 10
    assert outcomes.count(TooMany) == 14


def test_an_account_without_a_password_cannot_sign_in(database):
    with database.write() as session:
        imported = {"role": "annotator", "status": "active", "created_at": 0.0}
        session.add(Annotator(id="1", handle="imported", password_hash="", **imported))
    fail(database, 1, handle="imported")
    with database.read() as session:
        assert not accounts.has_account(session)
    join(database)
    with database.read() as session:
        assert accounts.has_account(session)


# Tokens


def token(database, person, scopes=("annotate",), days=1, now=0.0):
    with database.write() as session:
        return accounts.create_token(session, person, list(scopes), days, now)


def holder(database, secret, scope, now=0.0):
    with database.read() as session:
        return accounts.token_holder(session, secret, scope, now)


def test_a_token_opens_its_scopes_only(database):
    lead = join(database, role="lead")
    secret, row = token(database, lead, ["read", "export"])
    assert holder(database, secret, "export").id == lead.id
    assert secret.startswith(row.prefix) and len(row.prefix) < len(secret) / 3
    with pytest.raises(Forbidden, match="lacks the scope 'annotate'; it has export, read"):
        holder(database, secret, "annotate")


def test_a_token_expires_and_can_be_revoked(database):
    person = join(database)
    secret, row = token(database, person, days=2)
    assert holder(database, secret, "annotate", 2 * DAY - 1)
    with pytest.raises(NotSignedIn, match="unknown, expired or revoked"):
        holder(database, secret, "annotate", 2 * DAY)
    with database.write() as session:
        accounts.revoke_token(session, row.id, person, 1.0)
    with pytest.raises(NotSignedIn, match="unknown, expired or revoked"):
        holder(database, secret, "annotate", 2.0)


def test_only_the_holder_or_a_lead_revokes_a_token(database):
    alice, bob, lead = join(database), join(database, "bob"), join(database, "lea", "lead")
    for revoker in (alice, lead):
        _, row = token(database, alice)
        with pytest.raises(NotFound), database.write() as session:
            accounts.revoke_token(session, row.id, bob, 0.0)
        with database.write() as session:
            accounts.revoke_token(session, row.id, revoker, 0.0)


@pytest.mark.parametrize("scope", ["read", "export"])
def test_an_annotator_s_token_cannot_see_what_others_did(database, scope):
    with pytest.raises(Forbidden, match=f"scope '{scope}' is for a lead; alice is annotator"):
        token(database, join(database), ["annotate", scope])


@pytest.mark.parametrize("scopes, words", [([], "scopes is empty"), (["all"], "scope 'all' is unknown")])
def test_a_token_needs_known_scopes(database, scopes, words):
    with pytest.raises(Refusal, match=words):
        token(database, join(database), scopes)


# Pausing


def set_status(database, person, status, actor):
    with database.write() as session:
        accounts.set_status(session, person.id, status, actor.id, 1.0)


def test_a_paused_person_s_tokens_rest_too(database):
    alice, lead = join(database), join(database, "lea", "lead")
    secret, _ = token(database, alice)
    set_status(database, alice, "paused", lead)
    with pytest.raises(Forbidden, match="is paused; ask the lead"):
        holder(database, secret, "annotate")
    set_status(database, alice, "active", lead)
    assert holder(database, secret, "annotate")


def test_a_lead_cannot_lock_themselves_out(database):
    lead = join(database, "lea", "lead")
    with pytest.raises(Refusal, match="your own account cannot be paused"):
        set_status(database, lead, "paused", lead)


def test_what_happens_to_accounts_is_in_the_audit(database):
    alice, lead = join(database), join(database, "lea", "lead")
    set_status(database, alice, "paused", lead)
    with database.read() as session:
        rows = session.scalars(select(Audit).order_by(Audit.id)).all()
    assert [row.action for row in rows] == ["invite", "accept_invite"] * 2 + ["set_status"]
    assert rows[-1].actor == lead.id
    assert (rows[-1].before, rows[-1].after) == ({"status": "active"}, {"status": "paused"})

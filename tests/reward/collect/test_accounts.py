"""Accounts: links work once, passwords are only hashed, failed attempts count, and tokens open what they say."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select

from reward.collect.people import accounts, lockout, passwords, sessions, tokens
from reward.collect.people.sessions import Client
from reward.collect.refusals import Forbidden, NotFound, NotSignedIn, Refusal, TooMany
from reward.collect.store.tables import Annotator, Audit, Invite, Session, SignInFailure, Token
from rlhf.hashing import text_sha256

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


def sign_in(database, handle="alice", password=PASSWORD, address="10.0.0.1", now=0.0, known=None) -> str:
    return sessions.sign_in(database, handle, password, Client(address, known=known), now)


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
        assert sessions.signed_in(session, before, 0.0) is None
    with pytest.raises(NotSignedIn):
        sign_in(database)
    assert sign_in(database, password="another long password")
    with pytest.raises(NotFound, match="already used"):
        accept(database, secret, "bob")


def test_a_new_password_ends_all_that_the_old_one_opened(database):
    alice = join(database)
    browser, (secret, _) = sign_in(database), token(database, alice, days=30)
    with database.write() as session:
        first, second = (accounts.create_reset(session, alice, 7, "command line", 0.0) for _ in range(2))
    accept(database, first, password="another long password", now=1.0)
    with database.read() as session:
        assert sessions.signed_in(session, browser, 1.0) is None
    with pytest.raises(NotSignedIn, match="expired or revoked"):
        holder(database, secret, "annotate", 1.0)
    with pytest.raises(NotFound, match="has expired"):
        accept(database, second, now=1.0)


def test_who_changes_the_password_must_know_the_present_one_and_goes_on_in_this_browser_alone(database):
    alice, before = join(database), sign_in(database)
    change = lambda present: accounts.change_password(database, alice, present, "another long password", Client(), 1.0)  # noqa: E731
    with pytest.raises(NotSignedIn):
        change("not the password")
    with database.read() as session:
        assert sessions.signed_in(session, before, 1.0)
    after = change(PASSWORD)
    with database.read() as session:
        assert [one.sha256 for one in sessions.sessions_of(session, alice.id, 1.0)] == [text_sha256(after)]
    with pytest.raises(NotSignedIn):
        sign_in(database)


def test_an_invite_that_was_ended_makes_no_account(database):
    secret = invite(database)
    with database.write() as session:
        (listed,) = accounts.open_invites(session, 1.0)
        accounts.end_invite(session, listed.sha256, "command line", 1.0)
        assert accounts.open_invites(session, 1.0) == []
    with pytest.raises(NotFound, match="has expired"):
        accept(database, secret, now=1.0)
    with pytest.raises(NotFound, match="no such invite that can be used"), database.write() as session:
        accounts.end_invite(session, listed.sha256, "command line", 2.0)


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
    key, _ = token(database, person)
    with database.read() as session:
        hold_secrets = (Annotator, Invite, Session, Token, Audit, SignInFailure)
        stored = str([vars(row) for table in hold_secrets for row in session.scalars(select(table))])
        assert session.get(Annotator, person.id).password_hash.startswith("$argon2id$")
    for secret in (invitation, PASSWORD, cookie, key):
        assert secret not in stored


# Signing in


def test_the_right_password_signs_in_and_the_wrong_one_does_not(database):
    person = join(database)
    with database.read() as session:
        assert sessions.signed_in(session, sign_in(database), 0.0)[0].id == person.id
        assert sessions.signed_in(session, "no such secret", 0.0) is None
    fail(database, 1)
    fail(database, 1, handle="nobody")


def test_a_session_ends_eight_hours_after_it_was_last_seen(database):
    join(database)
    secret = sign_in(database, now=0.0)
    with database.write() as session:
        sessions.mark_seen(session, sessions.signed_in(session, secret, 7 * HOUR)[1], 7 * HOUR)
    with database.read() as session:
        assert sessions.signed_in(session, secret, 15 * HOUR - 1)
        assert sessions.signed_in(session, secret, 15 * HOUR) is None


def test_a_session_ends_a_day_after_it_began_however_busy_it_was(database):
    join(database)
    secret = sign_in(database, now=0.0)
    for hour in range(1, 24):
        with database.write() as session:
            sessions.mark_seen(session, sessions.signed_in(session, secret, hour * HOUR)[1], hour * HOUR)
    with database.read() as session:
        assert sessions.signed_in(session, secret, 24 * HOUR - 1)
        assert sessions.signed_in(session, secret, 24 * HOUR) is None


def test_the_list_of_one_s_browsers_names_them_and_ends_one_or_all(database):
    alice, bob = join(database), join(database, "bob")
    mozilla = "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"
    agents = [(mozilla, "10.0.0.1"), ("curl/8.1", "10.0.0.2"), ("", "")]
    with database.write() as session:
        for number, (agent, address) in enumerate(agents):
            sessions.open_session(session, alice.id, float(number), Client(address, agent))
        sessions.open_session(session, bob.id, 0.0)
        listed = sessions.sessions_of(session, alice.id, 5.0)
    told = [(one.browser, one.address, one.created_at) for one in listed]
    assert told == [("", "", 2.0), ("curl/8.1", "10.0.0.2", 1.0), ("Firefox on Linux", "10.0.0.1", 0.0)]
    with pytest.raises(NotFound), database.write() as session:
        sessions.end_session(session, listed[0].sha256, bob.id, 5.0, owner=bob.id)
    with database.write() as session:
        sessions.end_session(session, listed[0].sha256, alice.id, 5.0, owner=alice.id)
        assert sessions.end_sessions(session, alice.id, alice.id, 5.0) == 2
        assert sessions.sessions_of(session, alice.id, 5.0) == []
        assert len(sessions.sessions_of(session, bob.id, 5.0)) == 1


@pytest.mark.parametrize(
    "agent, name",
    [
        (
            "Mozilla/5.0 (Windows NT 10.0) Chrome/130.0.0.0 Safari/537.36",
            "Chrome on Windows",
        ),
        (
            "Mozilla/5.0 (Linux; Android 14) Chrome/130.0.0.0 Mobile Safari/537.36",
            "Chrome on Android",
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0) Chrome/130.0.0.0 Safari/537.36 Edg/130.0",
            "Edge on Windows",
        ),
        ("<script>\x00\n" * 9, "<script>" * 5),
    ],
)
def test_a_browser_is_named_as_a_person_would(agent, name):
    assert Client(user_agent=agent).name() == name


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
        sessions.sign_out(session, here)
    with database.read() as session:
        assert sessions.signed_in(session, here, 0.0) is None
        assert sessions.signed_in(session, there, 0.0)


def test_after_ten_failures_even_the_right_password_waits_a_quarter_of_an_hour(database):
    join(database)
    fail(database, 10, now=100.0)
    with pytest.raises(TooMany, match="Wait 15 minutes") as refused:
        sign_in(database, now=101.0)
    assert 899 <= refused.value.retry_after <= 900
    sign_in(database, now=100.0 + 15 * 60)


def test_who_guesses_from_elsewhere_does_not_lock_the_person_out(database):
    join(database)
    fail(database, 10, address="203.0.113.9")
    with pytest.raises(TooMany):
        sign_in(database, address="203.0.113.9")
    sign_in(database, address="10.0.0.1")


def spread(database, attempts, handle="alice", now=0.0):
    """Failures from one new address after the other, ten from each."""
    for i in range(attempts // 10):
        fail(database, 10, handle=handle, address=f"198.51.100.{i}", now=now)


@pytest.fixture
def quick_hashes(monkeypatch):
    """argon2 with the least it can do: these tests are of counts."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "_hasher", lambda: hasher)
    passwords._nobody_s_hash.cache_clear()
    yield
    passwords._nobody_s_hash.cache_clear()


def known(database, person) -> str:
    with database.read() as session:
        return sessions.known_browser(session, person)


def test_who_guesses_from_many_addresses_is_stopped_and_the_person_s_own_browser_is_not(database, quick_hashes):
    alice = join(database)
    own = known(database, alice)
    spread(database, 100)
    with pytest.raises(TooMany, match="Wait 24 hours, use a browser in which you have signed in before"):
        sign_in(database, address="198.51.100.99")
    with pytest.raises(TooMany):
        sign_in(database, address="10.0.0.1")
    sign_in(database, address="10.0.0.1", known=own)
    sign_in(database, address="198.51.100.99", now=24 * HOUR)


def test_an_own_browser_counts_by_itself_even_at_the_address_of_who_guesses(database, quick_hashes):
    own = known(database, join(database))
    for i in range(50):
        fail(database, 1, handle=f"guess{i}")
    sign_in(database, known=own)
    fail(database, 10, known=own)
    with pytest.raises(TooMany):
        sign_in(database, known=own)


def test_a_browser_is_known_as_one_person_s_until_the_password_changes(database):
    alice, bob = join(database), join(database, "bob")
    with database.read() as session:
        own = sessions.known_browser(session, alice)
        assert sessions._knows(session, alice, own)
        for forged in (None, "", ".", "x." + own.partition(".")[2], own[:-1]):
            assert not sessions._knows(session, alice, forged)
        assert not sessions._knows(session, bob, own)
        alice.password_hash = "another"
        assert not sessions._knows(session, alice, own)


def test_the_attempts_of_a_whole_network_of_ipv6_are_of_one_address():
    assert lockout.network_of("2001:db8::1") == lockout.network_of("2001:db8::ffff:2") == "2001:db8::/64"
    assert lockout.network_of("::ffff:10.0.0.1") == lockout.network_of("10.0.0.1") == "10.0.0.1"
    assert lockout.network_of("not an address") == "not an address"


def test_ten_failures_of_an_unknown_handle_look_the_same(database):
    fail(database, 10, handle="nobody")
    with pytest.raises(TooMany):
        sign_in(database, "nobody")


@pytest.mark.slow
def test_an_address_that_tries_many_handles_waits_and_others_do_not(database):
    join(database)
    for i in range(50):
        fail(database, 1, handle=f"guess{i}")
    with pytest.raises(TooMany):
        sign_in(database, address="10.0.0.1")
    sign_in(database, address="10.0.0.2")


def test_success_forgets_the_failures_of_the_handle_at_this_place(database):
    join(database)
    fail(database, 9)
    assert sign_in(database)
    fail(database, 9)
    assert sign_in(database)


@pytest.mark.slow
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
        return tokens.create_token(session, person, list(scopes), days, now)


def holder(database, secret, scope, now=0.0):
    with database.read() as session:
        return tokens.token_holder(session, secret, scope, now)


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
        tokens.revoke_token(session, row.id, person.id, 1.0)
    with pytest.raises(NotSignedIn, match="unknown, expired or revoked"):
        holder(database, secret, "annotate", 2.0)


def test_one_person_cannot_revoke_the_token_of_another(database):
    alice, bob = join(database), join(database, "bob")
    _, row = token(database, alice)
    with pytest.raises(NotFound), database.write() as session:
        tokens.revoke_token(session, row.id, bob.id, 0.0, owner=bob.id)
    with database.write() as session:
        tokens.revoke_token(session, row.id, alice.id, 0.0, owner=alice.id)


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


def set_role(database, person, role, actor):
    with database.write() as session:
        accounts.set_role(session, person.id, role, actor if isinstance(actor, str) else actor.id, 1.0)


@pytest.mark.parametrize("change", [("paused", accounts.set_status), ("annotator", accounts.set_role)])
def test_the_last_active_lead_stays_one_whoever_asks(database, change):
    value, function = change
    lea, leo = join(database, "lea", "lead"), join(database, "leo", "lead")
    set_status(database, leo, "paused", lea)
    for actor in (leo.id, "command line"):
        with pytest.raises(Refusal, match="lea is the last active lead"), database.write() as session:
            function(session, lea.id, value, actor, 1.0)
    set_status(database, leo, "active", lea)
    with database.write() as session:
        function(session, lea.id, value, leo.id, 1.0)


def test_of_two_leads_who_pause_each_other_at_once_one_stays(database):
    lea, leo = join(database, "lea", "lead"), join(database, "leo", "lead")

    def outcome(pair):
        try:
            return set_status(database, pair[1], "paused", pair[0])
        except Refusal as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, [(lea, leo), (leo, lea)]))
    assert sorted(map(str, outcomes))[0] == "None" and "is the last active lead" in "".join(filter(None, outcomes))


def test_with_the_role_go_the_tokens_that_open_more_than_an_annotator_may(database):
    lea, leo = join(database, "lea", "lead"), join(database, "leo", "lead")
    reading, ranking = token(database, leo, ["read", "annotate"])[0], token(database, leo)[0]
    set_role(database, leo, "annotator", lea)
    with pytest.raises(NotSignedIn, match="revoked"):
        holder(database, reading, "annotate", 1.0)
    assert holder(database, ranking, "annotate", 1.0).role == "annotator"
    set_role(database, leo, "lead", lea)
    with pytest.raises(NotSignedIn, match="revoked"):
        holder(database, reading, "read", 1.0)


def test_all_accounts_are_listed_with_what_is_open_for_them(database):
    alice, _ = join(database), join(database, "Bob", "lead")
    sign_in(database, now=5.0)
    token(database, alice), token(database, alice)
    with database.read() as session:
        rows = accounts.all_accounts(session, 6.0)
    told = [(row.person.handle, row.person.role, row.num_browsers, row.num_tokens, row.seen_at) for row in rows]
    assert told == [("alice", "annotator", 1, 2, 5.0), ("bob", "lead", 0, 0, None)]


def test_a_paused_person_gets_no_new_token(database):
    alice, lead = join(database), join(database, "lea", "lead")
    set_status(database, alice, "paused", lead)
    with pytest.raises(Forbidden, match="Your work here is paused"):
        token(database, alice)  # alice's row is of the time before


def test_what_happens_to_accounts_is_in_the_audit(database):
    alice, lead = join(database), join(database, "lea", "lead")
    set_status(database, alice, "paused", lead)
    with database.read() as session:
        rows = session.scalars(select(Audit).order_by(Audit.id)).all()
    assert [row.action for row in rows[1:]] == ["invite", "accept_invite"] * 2 + ["set_status"]
    assert rows[-1].actor == lead.id
    assert (rows[-1].before, rows[-1].after) == ({"status": "active"}, {"status": "paused"})


def test_each_end_of_something_that_opens_an_account_is_in_the_audit(database):
    alice, lead = join(database), join(database, "lea", "lead")
    sign_in(database)
    _, row = token(database, alice)
    with database.write() as session:
        before = session.scalar(select(func.count(Audit.id)))
        tokens.revoke_token(session, row.id, lead.id, 1.0)
        sessions.end_sessions(session, alice.id, lead.id, 1.0)
        accounts.create_invite(session, "lead", 7, lead.id, 1.0)
        accounts.end_invite(session, accounts.open_invites(session, 1.0)[0].sha256, lead.id, 1.0)
        accounts.set_role(session, alice.id, "lead", lead.id, 1.0)
    with database.read() as session:
        rows = session.scalars(select(Audit).where(Audit.id > before).order_by(Audit.id)).all()
    assert [row.action for row in rows] == ["revoke_token", "end sessions", "invite", "end invite", "set_role"]
    assert {row.actor for row in rows} == {lead.id}
    assert (rows[-1].before, rows[-1].after) == ({"role": "annotator"}, {"role": "lead"})

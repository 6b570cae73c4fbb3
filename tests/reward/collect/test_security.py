"""What keeps strangers, other sites and lost databases out: sessions, CSRF, hosts, headers, limits."""

import re

import pytest
from browsers import (
    LOCAL,
    NOW,
    PASSWORD,
    SAME_ORIGIN,
    browser_of,
    client,
    csrf_token,
    join,
    script_of,
    session_cookie,
    sign_in,
)
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url

from reward.collect.people import accounts
from reward.collect.store.database import Database
from reward.collect.store.tables import Collection, Session, SignInFailure, Token
from reward.collect.web.csrf_tokens import unmasked
from reward.collect.web.security import MAX_BODY_BYTES

HTTPS = "https://rank.example.org"
HOUR = 3600


class Clock:
    at = NOW

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def database(tmp_path, make_collection) -> Database:
    """SQLite alone: nothing here depends on the kind of database but test_accounts.py, which runs on both."""
    return make_collection(f"sqlite:///{tmp_path}/collect.db")


def count(database, table) -> int:
    with database.read() as session:
        return session.query(table).count()


def set_cookie(response) -> str:
    return response.headers.get("set-cookie", "")


# Signing in


def test_an_invited_person_is_signed_in_at_once_and_the_link_is_used(database):
    with database.write() as session:
        path = "/invite/" + accounts.create_invite(session, "annotator", 7, "command line", 0.0)
    browser = client(database)
    assert "invited to rank responses" in browser.get(path).text
    said = {"handle": "alice", "password": PASSWORD, "password_again": PASSWORD}
    assert browser.post(path, data=said).headers["location"] == "/"
    assert "alice" in browser.get("/invite/none").text
    again = client(database).get(path)
    assert again.status_code == 404 and "This invite link was already used." in again.text


def test_a_link_for_a_new_password_asks_for_no_handle(database):
    join(database, "alice")
    with database.write() as session:
        alice = accounts.person_named(session, "alice")
        path = "/invite/" + accounts.create_reset(session, alice, 7, "command line", 0.0)
    browser = client(database)
    shown = browser.get(path).text
    assert "For the account of <strong>alice</strong>" in shown and 'name="handle"' not in shown
    said = {"password": "another long password", "password_again": "another long password"}
    assert browser.post(path, data=said).headers["location"] == "/"
    assert sign_in(client(database), "alice", "another long password").status_code == 303


def test_looking_at_an_invite_does_not_use_it(database):
    with database.write() as session:
        path = "/invite/" + accounts.create_invite(session, "lead", 7, "command line", 0.0)
    for _ in range(3):
        assert client(database).get(path).status_code == 200


@pytest.mark.parametrize(
    "said, words",
    [
        ({"password_again": "another password"}, "the two passwords differ"),
        ({"password": "short", "password_again": "short"}, "the password has 5 characters"),
        ({"handle": "<b>x</b>"}, "handle &#39;&lt;b&gt;x&lt;/b&gt;&#39; cannot be used"),
    ],
)
def test_a_refused_form_says_why_and_keeps_the_handle_but_no_password(database, said, words):
    with database.write() as session:
        path = "/invite/" + accounts.create_invite(session, "lead", 7, "command line", 0.0)
    form = {"handle": "alice", "password": PASSWORD, "password_again": PASSWORD} | said
    refused = client(database).post(path, data=form)
    assert refused.status_code == 422 and words in refused.text
    assert PASSWORD not in refused.text and not set_cookie(refused)
    if form["handle"] == "alice":
        assert 'value="alice"' in refused.text


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(database):
    join(database, "alice")
    here = set_cookie(sign_in(client(database), "alice"))
    mark = r"-[0-9a-f]{8}"  # of the collection: cookies go to all ports of a host
    known = rf"known{mark}=[\w-]{{22}}\.[0-9a-f]{{64}}; HttpOnly; Max-Age=15552000; Path=/; SameSite=lax"
    assert re.fullmatch(rf"session{mark}=[\w-]{{43}}; HttpOnly; Path=/; SameSite=lax, {known}", here)
    there = set_cookie(sign_in(client(database, HTTPS, origin=HTTPS), "alice"))
    secure = rf"__Host-session{mark}=[\w-]{{43}}; HttpOnly; Path=/; SameSite=lax; Secure, __Host-{known}; Secure"
    assert re.fullmatch(secure, there)


def test_signing_in_gives_a_new_session_whatever_the_browser_brought(database):
    join(database, "alice")
    planted = client(database)
    planted.cookies.set(session_cookie(database), "planted by somebody else", domain="localhost.local", path="/")
    secret = re.search("session-[^=]+=([^;]+)", set_cookie(sign_in(planted, "alice"))).group(1)
    assert secret != "planted by somebody else"


def test_signing_in_again_ends_the_session_that_the_browser_had(database):
    browser = browser_of(database, "alice")
    assert sign_in(browser, "alice").status_code == 303
    assert count(database, Session) == 1


def test_a_wrong_password_says_no_more_than_an_unknown_handle(database):
    join(database, "alice")
    wrong = client(database).post("/sign-in", data={"handle": "alice", "password": "wrong"})
    unknown = client(database).post("/sign-in", data={"handle": "alina", "password": "wrong"})
    assert wrong.status_code == unknown.status_code == 401
    numbered = re.compile(r"ali(ce|na)")
    assert numbered.sub("", wrong.text) == numbered.sub("", unknown.text)
    assert not set_cookie(wrong)


@pytest.mark.slow
def test_a_refused_attempt_counts_though_its_request_failed(database):
    join(database, "alice")
    browser = client(database)
    for _ in range(10):
        assert sign_in(browser, "alice", "wrong password").status_code == 401
    refused = sign_in(browser, "alice")
    assert refused.status_code == 429 and refused.headers["retry-after"] == "900"
    assert "Too many failed attempts" in refused.text
    assert count(database, SignInFailure) == 30  # each for the handle here, the address, and the handle anywhere


@pytest.mark.slow
def test_behind_a_proxy_the_address_is_what_the_proxy_saw_and_not_what_the_client_says(database):
    proxied = client(database, behind_proxy=True)
    for i in range(50):
        headers = {"X-Forwarded-For": f"192.0.2.{i}, 198.51.100.7"}
        assert proxied.post("/sign-in", data={"handle": f"guess{i}"}, headers=headers).status_code == 401
    blocked = {"X-Forwarded-For": "192.0.2.200, 198.51.100.7"}
    assert proxied.post("/sign-in", data={"handle": "guess"}, headers=blocked).status_code == 429
    other = {"X-Forwarded-For": "198.51.100.7, 198.51.100.8"}
    assert proxied.post("/sign-in", data={"handle": "guess"}, headers=other).status_code == 401


@pytest.mark.slow
def test_a_proxy_that_adds_a_line_of_its_own_is_believed_and_not_the_client_s_line(database):
    proxied = client(database, behind_proxy=True)
    for i in range(51):
        headers = [*SAME_ORIGIN.items(), ("X-Forwarded-For", f"192.0.2.{i}"), ("X-Forwarded-For", "198.51.100.7")]
        answer = proxied.post("/sign-in", data={"handle": f"guess{i}"}, headers=headers)
    assert answer.status_code == 429


@pytest.mark.slow
def test_without_a_proxy_nobody_chooses_their_address(database):
    direct = client(database)
    for i in range(50):
        headers = {"X-Forwarded-For": f"192.0.2.{i}"}
        assert direct.post("/sign-in", data={"handle": f"guess{i}"}, headers=headers).status_code == 401
    assert direct.post("/sign-in", data={"handle": "g"}, headers={"X-Forwarded-For": "1.1.1.1"}).status_code == 429


def test_a_browser_left_alone_for_eight_hours_signs_in_again_and_goes_back(database):
    clock = Clock()
    browser = browser_of(database, "alice", now=clock)
    for _ in range(3):
        clock.at += 7 * HOUR
        assert browser.get("/sign-in").headers["location"] == "/"
    clock.at += 8 * HOUR
    assert browser.get("/sign-in").status_code == 200
    assert browser.post("/sign-out").headers["location"] == "/sign-in?next=%2F"


def test_signing_out_ends_the_session_on_the_server_too(database):
    browser = browser_of(database, "alice")
    secret = browser.cookies[session_cookie(database)]
    gone = browser.post("/sign-out")
    assert gone.headers["location"] == "/sign-in" and f'{session_cookie(database)}=""' in set_cookie(gone)
    assert count(database, Session) == 0
    browser.cookies.set(session_cookie(database), secret, domain="localhost.local", path="/")
    assert browser.get("/api/v1/me/history").status_code == 401


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "https://evil.example", "/a\tb", "javascript:x"])
def test_signing_in_never_leads_to_another_site(database, path):
    join(database, "alice")
    answer = client(database).post("/sign-in", data={"handle": "alice", "password": PASSWORD, "next": path})
    assert answer.headers["location"] == "/"


def test_after_signing_in_one_is_where_one_was(database):
    join(database, "alice")
    answer = client(database).post("/sign-in", data={"handle": "alice", "password": PASSWORD, "next": "/history"})
    assert answer.headers["location"] == "/history"


# Requests that another site makes


def test_a_form_needs_the_token_of_its_session(database):
    browser, other = browser_of(database, "alice"), browser_of(database, "bob")
    own = browser.headers.pop("X-CSRF-Token")
    for token in (None, "", "wrong", "wröng", csrf_token(other)):
        form = {} if token is None else {"csrf_token": token}
        refused = browser.post("/sign-out", data=form)
        assert refused.status_code == 403 and "This page is out of date." in refused.text
    assert browser.post("/sign-out", data={"csrf_token": own}).status_code == 303


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Sec-Fetch-Site": "same-origin", "Origin": LOCAL}, 303),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),
        ({"Origin": LOCAL}, 303),
        ({}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:9000"}, 403),
        ({"Origin": "https://localhost:8000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": LOCAL}, 403),
    ],
)
def test_a_request_says_that_it_comes_from_our_own_pages(database, headers, status):
    join(database, "alice")
    assert sign_in(client(database, headers={"X-None": "", **headers}), "alice").status_code == status
    browser = browser_of(database, "bob")
    del browser.headers["Sec-Fetch-Site"], browser.headers["Origin"]
    assert browser.post("/sign-out", headers=headers).status_code == status


def test_with_an_origin_only_that_one_is_ours(database):
    join(database, "alice")
    for origin, status in ((HTTPS, 303), ("http://rank.example.org", 403), (f"{HTTPS}:444", 403)):
        assert sign_in(client(database, HTTPS, {"Origin": origin}, origin=HTTPS), "alice").status_code == status


def test_a_proxy_may_call_us_by_our_loopback_name(database):
    join(database, "alice")
    proxied = client(database, "http://127.0.0.1:8000", {"Origin": HTTPS}, origin=HTTPS, behind_proxy=True)
    assert sign_in(proxied, "alice").status_code == 303


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1:8000", "[::1]:8000"])
def test_the_server_answers_to_loopback_names(database, host):
    assert client(database).get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.x.org", "10.0.0.1", "", "["])
def test_the_server_answers_to_no_foreign_name(database, host):
    refused = client(database).get("/healthz", headers={"Host": host})
    assert refused.status_code == 421 and "is not this server's" in refused.json()["detail"]


def test_the_server_answers_to_its_origin_s_name(database):
    browser = client(database, HTTPS, origin=HTTPS)
    assert browser.get("/healthz").status_code == 200
    assert browser.get("/healthz", headers={"Host": "example.org"}).status_code == 421


# Headers

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.mark.parametrize("path, status", [("/sign-in", 200), ("/no", 404), ("/api/v1/next", 401), ("/healthz", 200)])
def test_every_response_carries_the_security_headers(database, path, status):
    answer = client(database).get(path)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert "strict-transport-security" not in answer.headers
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_browser_is_told_to_stay_with_https_only_where_there_is_https(database):
    answer = client(database, HTTPS, origin=HTTPS).get("/sign-in")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_pages_have_neither_inline_scripts_nor_inline_styles(database):
    """The policy would stop them."""
    pages = [client(database).get(path).text for path in ("/sign-in", "/nowhere")]
    assert not [page for page in pages if re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)]


# What is malformed, too large or fails


@pytest.mark.parametrize("stated", [True, False])
def test_a_body_over_the_limit_is_refused_whether_its_length_is_stated_or_not(database, stated):
    body = b'{"reason": "' + b"x" * MAX_BODY_BYTES
    sent = body if stated else iter([body[:1000], body[1000:]])
    json = {"Content-Type": "application/json"}
    refused = browser_of(database, "alice").post("/api/v1/slots/x/skip", content=sent, headers=json)
    assert refused.status_code == 413 and "more than 1048576 bytes; nothing of it was stored" in refused.text
    assert refused.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("path", ["/sign-in", "/invite/x"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_stranger_may_send_a_form_and_no_megabyte(database, path, stated):
    body = b"handle=" + b"x" * 2**14
    sent = body if stated else iter([body[:1000], body[1000:]])
    refused = client(database).post(path, content=sent, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert refused.status_code == 413 and "more than 16384 bytes; nothing of it was stored" in refused.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "content, content_type, words",
    [
        (b'{"reason": NaN}', "application/json", "not JSON in UTF-8"),
        (b'{"reason": "\xff"}', "application/json", "not JSON in UTF-8"),
        (b"[" * 100_000, "application/json", "not JSON in UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "application/json", "not JSON in UTF-8"),
        (b"[1]", "application/json", "the body is a JSON list; send an object"),
        (b'{"reason": "a\\u0000b"}', "application/json", "contains a NUL"),
        (b'{"a": [{"\\u0000": 1}]}', "application/json", "contains a NUL"),
        (b'{"reason": "\\ud800"}', "application/json", "contains a NUL or half a character"),
        (b'{"reason": "x"}', "text/plain", "send this as JSON"),
    ],
)
def test_a_malformed_body_is_refused_with_the_reason(database, content, content_type, words):
    browser = browser_of(database, "alice")
    refused = browser.post("/api/v1/slots/x/skip", content=content, headers={"Content-Type": content_type})
    assert refused.status_code == 422 and words in refused.json()["detail"]
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["request_id"] == refused.headers["x-request-id"]


def test_a_text_about_nul_is_no_nul(database):
    browser = browser_of(database, "alice")
    answer = browser.post("/api/v1/slots/x/skip", json={"reason": "it says \\u0000"})
    assert answer.status_code == 404  # there is no slot x


@pytest.mark.parametrize("body", [b"handle=a%00b", b"handle=%ff", "handle=ü".encode(), b"&".join([b"a=1"] * 1001)])
def test_a_malformed_form_is_refused(database, body):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client(database).post("/sign-in", content=body, headers=form).status_code == 422


@pytest.mark.parametrize("path", ["/rank/%00", "/api/v1/me/history?before=%00", "/invite/a%00"])
def test_an_address_with_a_nul_is_refused(database, path):
    assert browser_of(database, "alice").get(path).status_code == 400


def test_a_lost_database_is_a_503_that_says_when_to_come_back(database, tmp_path):
    browser = browser_of(database, "alice")
    database.close()
    (tmp_path / "collect.db").rename(tmp_path / "away.db")
    (tmp_path / "collect.db").mkdir()
    for path in ("/api/v1/next", "/readyz"):
        lost = browser.get(path)
        assert lost.status_code == 503 and lost.headers["retry-after"] == "5"
        assert lost.headers["content-type"] == "application/problem+json"
        assert "the database does not answer" in lost.json()["detail"]
    page = browser.post("/sign-out")
    assert page.status_code == 503 and "Nothing was stored; try again" in page.text
    assert browser.get("/healthz", headers={"Cookie": ""}).json() == {"status": "ok"}


def test_a_lost_database_is_not_said_to_strangers_by_its_place(postgres_url, make_collection):
    database = make_collection(postgres_url)
    browser = client(database)
    database.engine = create_engine(make_url(postgres_url).update_query_dict({"host": "/nowhere"}))
    answer = browser.get("/readyz")
    assert answer.status_code == 503 and "the database does not answer" in answer.json()["detail"]
    assert "/nowhere" not in answer.text


def test_a_database_that_has_no_connection_left_is_a_503(database):
    browser = browser_of(database, "alice")
    database.engine = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    with database.read() as session:
        session.connection()
        answer = browser.get("/api/v1/me/history")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
    assert answer.json()["detail"].startswith("the database is busy.")


def test_a_full_disk_is_a_503_and_what_was_acknowledged_is_all_that_is_stored(database):
    """max_page_count=1 is SQLite's way to say that the file cannot grow."""
    browser = browser_of(database, "alice")
    database.close()
    event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=1"))
    statuses = []
    while statuses.count(503) < 2 and len(statuses) < 500:
        answer = browser.post("/api/v1/tokens", json={"scopes": ["annotate"], "days": 1})
        statuses.append(answer.status_code)
    assert "database or disk is full" in answer.json()["detail"] and answer.headers["retry-after"] == "5"
    assert set(statuses) == {201, 503}
    assert count(database, Token) == statuses.count(201)


def test_a_bug_is_a_500_with_a_number_and_without_its_details(database, caplog):
    failed = sign_in(client(database, now=lambda: "not a time"), "alice")
    assert failed.status_code == 500
    assert failed.headers["x-request-id"] in failed.text and failed.headers["x-request-id"] in caplog.text
    assert "Traceback" not in failed.text and "TypeError" not in failed.text
    assert failed.headers["content-security-policy"] == POLICY


def test_the_log_of_a_bug_does_not_hold_the_secret_of_an_invite(database, caplog):
    browser = client(database, now=lambda: "not a time")
    with database.write() as session:
        secret = accounts.create_invite(session, "annotator", 7, "command line", 0.0)
    assert browser.get(f"/invite/{secret}").status_code == 500
    assert "GET /invite/... failed" in caplog.text and secret not in caplog.text


def test_no_page_describes_the_api_to_strangers(database):
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert client(database).get(path).status_code == 404


def test_a_token_is_for_the_api_and_not_for_pages(database):
    person = join(database, "alice")
    script = script_of(database, person, "annotate")
    assert script.get("/api/v1/me/history").status_code == 200
    assert script.post("/sign-out", headers=SAME_ORIGIN).headers["location"].startswith("/sign-in")


# What is compressed, and whose it is


def test_pages_and_scripts_are_compressed(database):
    browser = browser_of(database, "alice")
    for path in ("/help", "/static/rank.js"):
        raw = browser.get(path, headers={"Accept-Encoding": "identity"})
        packed = browser.get(path, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in raw.headers
        assert int(packed.headers["content-length"]) < len(raw.content) / 2


def test_the_token_of_a_form_is_in_other_letters_on_each_page(database):
    browser = browser_of(database, "alice")
    shown = {csrf_token(browser) for _ in range(20)}
    assert len(shown) == 20
    assert len({unmasked(token) for token in shown}) == 1


@pytest.mark.parametrize("text", ["", "z", "abc", "ab", "ä", "00" * 43])
def test_what_is_no_token_is_no_ones_token(text):
    assert unmasked(text) != b"x" * 43 and len(unmasked(text)) < 43


def test_two_collections_on_one_host_keep_their_cookies_apart(tmp_path, make_collection):
    """Browsers send a host's cookies to all its ports."""
    names = []
    for name, seed in (("one", "00"), ("two", "22")):
        (tmp_path / name).mkdir()
        database = make_collection(f"sqlite:///{tmp_path}/{name}/collect.db")
        with database.write() as session:
            session.get(Collection, 1).seed = seed * 16
        names.append(session_cookie(database))
        assert names[-1] in browser_of(database, "alice").cookies
    assert names[0] != names[1]


def test_pages_have_the_collections_name_and_a_new_one_at_once(database):
    browser = browser_of(database, "alice")
    assert "<title>Help · test</title>" in browser.get("/help").text
    assert "· test</title>" in client(database).get("/sign-in").text
    with database.write() as session:
        session.get(Collection, 1).name = "<b>Support & more"
    page, name = browser.get("/help").text, "&lt;b&gt;Support &amp; more"
    assert f"<title>Help · {name}</title>" in page and f"<bdi>{name}</bdi>" in page

"""The JSON API: what was sent is what is stored, and said again."""

import hashlib
import json
from uuid import uuid4

import pytest
from browsers import NOW, browser_of, client, join, script_of
from collect_world import add_new_items, add_ranked_items
from sqlalchemy import select

from reward.collect.store.tables import Annotation, Draft, Flag, Response, Skip

LEASE = 1800  # seconds, of the default settings


@pytest.fixture
def database_url(tmp_path):
    """SQLite alone: what is written and read is tested on both databases beside the services that do it."""
    return f"sqlite:///{tmp_path}/collect.db"


def key() -> dict:
    return {"Idempotency-Key": uuid4().hex}


def take(browser) -> dict:
    answer = browser.get("/api/v1/next")
    assert answer.status_code == 200, answer.text
    return answer.json()


def in_order(work: dict) -> dict[str, int]:
    """Ranks by the alphabet of the answers."""
    texts = sorted(response["text"] for response in work["responses"])
    return {response["id"]: texts.index(response["text"]) + 1 for response in work["responses"]}


def submit(browser, work: dict, headers=None, **said):
    body = {"ranks": in_order(work)} | said
    return browser.post(f"/api/v1/slots/{work['slot_id']}/submit", json=body, headers=headers or key())


def rows(database, table) -> list:
    with database.read() as session:
        return list(session.scalars(select(table)))


def test_a_tied_ranking_is_stored_and_said_again_as_it_was_sent(database):
    add_new_items(database, 1, k=4)
    browser = browser_of(database, "alice")
    work = take(browser)
    ranks = dict(zip([response["id"] for response in work["responses"]], [1, 2, 2, 4], strict=True))
    answer = submit(browser, work, ranks=ranks, comment="Zwei sind gleich gut. \U0001f44d")
    assert answer.status_code == 200
    assert answer.json()["ranks"] == ranks and answer.json()["unacceptable"] == []
    (stored,) = rows(database, Annotation)
    assert stored.id == answer.json()["annotation_id"] and stored.ranks == ranks
    assert stored.display_order == list(ranks) and stored.comment == "Zwei sind gleich gut. \U0001f44d"


def test_an_item_has_what_is_needed_to_rank_it_and_no_more(database):
    add_new_items(database, 1)
    work = take(browser_of(database, "alice"))
    assert set(work) == {"slot_id", "messages", "responses", "lease_until", "draft", "draft_rev", "settings"}
    assert work["messages"] == [{"role": "user", "content": "Prompt 0?"}]
    assert sorted(response["text"] for response in work["responses"]) == ["0.0", "0.1", "0.2"]
    assert all(set(response) == {"id", "text"} for response in work["responses"])
    assert work["lease_until"] == NOW + LEASE and work["draft"] is None and work["draft_rev"] == 0
    assert work["settings"] == {
        "allow_ties": True,
        "allow_partial": False,
        "criteria": [],
        "require_comment": False,
        "require_read": False,
    }


@pytest.mark.slow
def test_no_work_says_why_and_when_to_come_back(database):
    alice, bob = browser_of(database, "alice"), browser_of(database, "bob")
    empty = alice.get("/api/v1/next")
    assert (empty.status_code, empty.content, empty.headers["x-reason"]) == (204, b"", "empty")
    add_new_items(database, 1)
    work = take(alice)
    waiting = bob.get("/api/v1/next")
    assert (waiting.status_code, waiting.headers["x-reason"]) == (204, "lease_wait")
    assert waiting.headers["retry-after"] == str(LEASE)
    submit(alice, work)
    assert bob.get("/api/v1/next").headers["x-reason"] == "all_done"


def test_a_submission_that_is_sent_twice_is_stored_once(database):
    add_new_items(database, 1)
    browser = browser_of(database, "alice")
    work, headers = take(browser), key()
    first, again = submit(browser, work, headers), submit(browser, work, headers)
    assert first.status_code == again.status_code == 200 and first.json() == again.json()
    assert len(rows(database, Annotation)) == 1
    other = submit(browser, work, headers, comment="changed")
    assert other.status_code == 422 and "Idempotency-Key" in other.json()["fields"]


def test_a_submission_needs_a_key(database):
    add_new_items(database, 1)
    browser = browser_of(database, "alice")
    refused = browser.post(f"/api/v1/slots/{take(browser)['slot_id']}/submit", json={})
    assert refused.status_code == 422 and "idempotency-key" in refused.json()["fields"]


def test_a_refused_submission_names_its_fields(database):
    add_new_items(database, 1)
    browser = browser_of(database, "alice")
    work = take(browser)
    refused = submit(browser, work, ranks=dict.fromkeys(in_order(work)))
    assert refused.status_code == 422 and "ranks" in refused.json()["fields"]
    assert refused.headers["content-type"] == "application/problem+json"
    assert set(refused.json()) == {"type", "title", "status", "detail", "request_id", "fields"}
    assert rows(database, Annotation) == []


def test_a_draft_comes_back_and_two_tabs_do_not_overwrite_each_other(database):
    add_new_items(database, 1)
    browser = browser_of(database, "alice")
    path = f"/api/v1/slots/{take(browser)['slot_id']}/draft"
    assert browser.put(path, json={"rev": 0, "payload": {"comment": "first tab"}}).json() == {"rev": 1}
    slower = browser.put(path, json={"rev": 0, "payload": {"comment": "second tab"}})
    assert slower.status_code == 409
    assert slower.json()["current"] == {"rev": 1, "payload": {"comment": "first tab"}}
    assert (take(browser)["draft"], take(browser)["draft_rev"]) == ({"comment": "first tab"}, 1)


def test_what_came_too_late_is_refused_and_kept_as_a_draft(database):
    add_new_items(database, 1)
    clock = [NOW]
    alice = browser_of(database, "alice", now=lambda: clock[0])
    bob = browser_of(database, "bob", now=lambda: clock[0])
    work = take(alice)
    clock[0] += LEASE + 1
    assert take(bob)["slot_id"] == work["slot_id"]
    late = submit(alice, work, comment="An hour of thought.")
    assert late.status_code == 409 and late.json()["current"]["payload"]["comment"] == "An hour of thought."
    (draft,) = rows(database, Draft)
    assert draft.payload["comment"] == "An hour of thought." and rows(database, Annotation) == []
    assert "An hour of thought." not in bob.get("/api/v1/next").text


def test_after_the_lease_a_submission_is_stored_unless_somebody_took_the_item(database):
    add_new_items(database, 1)
    clock = [NOW]
    alice = browser_of(database, "alice", now=lambda: clock[0])
    work = take(alice)
    clock[0] += LEASE + 1
    assert submit(alice, work).status_code == 200


@pytest.mark.slow
def test_a_lease_is_renewed_and_given_back(database):
    add_new_items(database, 1)
    clock = [NOW]
    alice, bob = (browser_of(database, name, now=lambda: clock[0]) for name in ("alice", "bob"))
    slot = f"/api/v1/slots/{take(alice)['slot_id']}"
    clock[0] += 1000
    assert alice.post(f"{slot}/renew").json() == {"lease_until": NOW + 1000 + LEASE}
    assert bob.post(f"{slot}/renew").status_code == 409
    assert alice.post(f"{slot}/release").status_code == 204
    assert take(bob)["slot_id"] == slot.rpartition("/")[2]


def test_a_skip_and_a_flag_keep_their_reasons(database):
    add_new_items(database, 1)
    browser = browser_of(database, "alice")
    work = take(browser)
    slot, bad = f"/api/v1/slots/{work['slot_id']}", work["responses"][1]["id"]
    said = {"response_id": bad, "reason": "Personal data", "note": "a phone number"}
    assert browser.post(f"{slot}/flag", json=said).status_code == 204
    assert browser.post(f"{slot}/flag", json={"response_id": None, "reason": "Broken"}).status_code == 204
    assert browser.post(f"{slot}/flag", json={"response_id": 7, "reason": "Broken"}).status_code == 422
    assert browser.post(f"{slot}/skip", json={}).status_code == 422
    assert browser.post(f"{slot}/skip", json={"reason": "I cannot judge this"}).status_code == 204
    flags = {(flag.response_id, flag.reason, flag.note) for flag in rows(database, Flag)}
    assert flags == {(bad, "Personal data", "a phone number"), (None, "Broken", "")}
    assert [skip.reason for skip in rows(database, Skip)] == ["I cannot judge this"]


@pytest.mark.slow
def test_one_s_history_is_in_pages_and_has_only_one_s_own(database):
    add_new_items(database, 5)
    alice, bob = browser_of(database, "alice"), browser_of(database, "bob")
    mine = [submit(alice, take(alice)).json()["annotation_id"] for _ in range(3)]
    submit(bob, take(bob))
    first = alice.get("/api/v1/me/history?limit=2").json()
    second = alice.get("/api/v1/me/history", params={"limit": 2, "before": first["next"]}).json()
    seen = [one["annotation_id"] for one in first["annotations"] + second["annotations"]]
    assert sorted(seen) == sorted(mine) and second["next"] is None


def test_a_change_is_a_new_revision_and_only_of_one_s_own(database):
    add_new_items(database, 1)
    alice, bob = browser_of(database, "alice"), browser_of(database, "bob")
    work = take(alice)
    annotation_id = submit(alice, work).json()["annotation_id"]
    path, turned = f"/api/v1/annotations/{annotation_id}/revise", {i: 4 - rank for i, rank in in_order(work).items()}
    assert bob.post(path, json={"ranks": turned}, headers=key()).status_code == 404
    changed = alice.post(path, json={"ranks": turned}, headers=key())
    assert changed.status_code == 200 and changed.json()["ranks"] == turned
    kept = {one.revision: one.ranks for one in rows(database, Annotation)}
    assert kept == {1: in_order(work), 2: turned}
    stale = alice.post(path, json={"ranks": turned}, headers=key())
    assert stale.status_code == 409 and stale.json()["current"] == {"annotation_id": changed.json()["annotation_id"]}


@pytest.mark.slow
def test_every_answer_that_is_acknowledged_is_in_the_database_by_its_text(database):
    """Thirty items, by two people in turn: nothing is mixed up."""
    add_new_items(database, 30, k=5)
    people = [browser_of(database, name) for name in ("alice", "bob")]
    acknowledged = {}
    for i in range(30):
        answer = submit(people[i % 2], take(people[i % 2])).json()
        acknowledged[answer["annotation_id"]] = answer["ranks"]
    texts = {response.id: response.text for response in rows(database, Response)}
    stored = {one.id: one.ranks for one in rows(database, Annotation)}
    assert stored == acknowledged
    orders = [[texts[one] for one in sorted(ranks, key=ranks.get)] for ranks in stored.values()]
    assert sorted(orders) == sorted([[f"{i}.{j}" for j in range(5)] for i in range(30)])


# For leads


def ranked_by_alice(database, n=2) -> None:
    add_new_items(database, n)
    alice = browser_of(database, "alice")
    for _ in range(n):
        submit(alice, take(alice), active_seconds=5.0)


def test_a_lead_reads_how_far_things_are(database):
    ranked_by_alice(database)
    lead = browser_of(database, "lea", "lead")
    assert lead.get("/api/v1/progress").json()["done_slots"] == 2
    assert lead.get("/api/v1/agreement").json()["num_rankings"] == 2
    assert lead.get("/api/v1/annotators").json()["annotators"][0]["annotator"] == "alice"


@pytest.mark.slow
def test_a_version_is_made_and_fetched_as_it_lies_on_the_disk(database, tmp_path):
    ranked_by_alice(database)
    script = script_of(database, join(database, "lea", "lead"), "export", folder=tmp_path)
    made = script.post("/api/v1/versions")
    assert made.status_code == 201 and made.json()["seq"] == 1 and made.json()["counts"]["rankings"] == 2
    assert script.get("/api/v1/versions").json() == {"versions": [made.json()]}
    again = script.post("/api/v1/versions")
    assert (again.status_code, again.json()) == (200, made.json())  # nothing is new
    answer = script.get("/api/v1/versions/1/export")
    content = (tmp_path / "versions" / "1" / "rankings.jsonl").read_bytes()
    assert answer.status_code == 200 and answer.content == content
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert answer.headers["content-disposition"] == 'attachment; filename="version-1-canonical.jsonl"'
    same = script.get("/api/v1/versions/1/export", headers={"If-None-Match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


def test_a_version_comes_in_other_formats_with_their_options(database, tmp_path):
    ranked_by_alice(database, 1)
    script = script_of(database, join(database, "lea", "lead"), "export", folder=tmp_path)
    script.post("/api/v1/versions")
    pairs = script.get("/api/v1/versions/1/export?format=trl&strategy=adjacent")
    assert len(pairs.text.splitlines()) == 2  # of three ranked answers
    table = script.get("/api/v1/versions/1/export?format=csv")
    assert table.headers["content-type"] == "text/csv; charset=utf-8"


def test_what_a_format_cannot_hold_is_counted_in_a_header(database, tmp_path):
    add_ranked_items(database, 1)
    add_ranked_items(database, 3, handles=("bob",), order=len)  # two new ones; their answers are as long: ties
    script = script_of(database, join(database, "lea", "lead"), "export", folder=tmp_path)
    script.post("/api/v1/versions")
    pairs = script.get("/api/v1/versions/1/export?format=trl")
    assert json.loads(pairs.headers["x-left-out"]) == {"with all answers tied": 2}
    assert "x-left-out" not in script.get("/api/v1/versions/1/export?format=trl&ties=soft").headers


@pytest.mark.slow
@pytest.mark.parametrize(
    "query, status, words",
    [
        ("1/export?format=docx", 422, "docx"),
        ("1/export?format=trl&strategy=none", 422, "strategy"),
        ("1/export?colour=red", 422, "colour"),
        ("1/export?rows=1", 422, "no option 'rows'"),
        ("99999999999999999999/export", 422, "seq"),
        ("1/export?format=sft", 422, "has no demonstrations"),
        ("2/export", 404, "version 2"),
        ("one/export", 422, "seq"),
    ],
)
def test_a_version_that_cannot_be_had_is_refused_with_the_reason(database, tmp_path, query, status, words):
    ranked_by_alice(database, 1)
    script = script_of(database, join(database, "lea", "lead"), "export", folder=tmp_path)
    script.post("/api/v1/versions")
    refused = script.get(f"/api/v1/versions/{query}")
    assert refused.status_code == status and words in refused.json()["detail"]


def test_an_empty_version_is_refused(database, tmp_path):
    script = script_of(database, join(database, "lea", "lead"), "export", folder=tmp_path)
    refused = script.post("/api/v1/versions")
    assert refused.status_code == 422 and "there is nothing to export" in refused.json()["detail"]


# Tokens


def test_a_token_ranks_without_a_cookie_until_it_is_revoked(database):
    add_new_items(database, 2)
    browser = browser_of(database, "alice")
    made = browser.post("/api/v1/tokens", json={"scopes": ["annotate"], "days": 30})
    assert made.status_code == 201
    script = client(database, headers={"Authorization": f"Bearer {made.json()['token']}"})
    assert submit(script, take(script)).status_code == 200
    assert script.delete(f"/api/v1/tokens/{made.json()['id']}").status_code == 401  # it takes a person
    assert browser.delete(f"/api/v1/tokens/{made.json()['id']}").status_code == 204
    refused = script.get("/api/v1/next")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"


def test_a_bad_token_is_refused_even_beside_a_good_cookie(database):
    browser = browser_of(database, "alice")
    assert browser.get("/api/v1/me/history").status_code == 200
    assert browser.get("/api/v1/me/history", headers={"Authorization": "Bearer guess"}).status_code == 401


@pytest.mark.parametrize(
    "body", [{}, {"scopes": ["annotate"]}, {"scopes": "annotate", "days": 1}, {"scopes": [1], "days": 1}]
)
def test_a_token_is_asked_for_in_full(database, body):
    assert browser_of(database, "alice").post("/api/v1/tokens", json=body).status_code == 422

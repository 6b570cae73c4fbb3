"""Who may reach which route, for every route there is; and that no response tells an annotator anything of others."""

import re

import pytest
from browsers import NOW, SAME_ORIGIN, browser_of, client, join, script_of, sign_in
from collect_world import add_new_items, body, hand_in, take
from fastapi.routing import iter_route_contexts
from sqlalchemy import select

from reward.collect.people import accounts
from reward.collect.ranking import queue
from reward.collect.ranking.items import NewItem, NewResponse, add_items
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotator, Item, Slot
from reward.collect.web.app import create_app

SIGN_IN = "to sign in"
PUBLIC = ["nobody", "annotator", "lead", "ranking_token", "reading_token"]


def row(nobody, annotator, lead, ranking_token=None, reading_token=None) -> dict:
    """The status that each gets. Pages do not look at tokens."""
    given = [nobody, annotator, lead, ranking_token or nobody, reading_token or nobody]
    return dict(zip(PUBLIC, given, strict=True))


def page(status=200, lead=None) -> dict:
    return row(SIGN_IN, status, lead or status)


def lead_page(status=200) -> dict:
    return row(SIGN_IN, 403, status)


def ranking(status) -> dict:
    """For whoever ranks: by cookie, or by a token with the scope annotate."""
    return row(401, status, status, status, 403)


def reading(status, reading_token) -> dict:
    return row(401, 403, status, 403, reading_token)


# Asked with nothing entered, of things that are not there: 404, 409 and 422 mean that one was let in.
TABLE = {
    "GET /healthz": row(200, 200, 200),
    "GET /readyz": row(200, 200, 200),
    "HEAD /healthz": row(200, 200, 200),
    "HEAD /readyz": row(200, 200, 200),
    "GET /sign-in": row(200, 303, 303),
    "POST /sign-in": row(401, 401, 401),
    "POST /sign-out": page(303),
    "GET /invite/{secret}": row(404, 404, 404),
    "POST /invite/{secret}": row(404, 404, 404),
    "GET /account": page(),
    "POST /account/browsers/{sha256}/end": page(404),
    "POST /account/sign-out-others": page(303),
    "POST /account/tokens": page(422),
    "POST /account/tokens/{token_id}/revoke": page(404),
    "POST /account/password": page(422),
    "GET /": page(303),
    "GET /rank": page(),
    "POST /rank/{slot_id}": page(404),
    "GET /history": page(),
    "GET /history/{annotation_id}": page(404),
    "POST /history/{annotation_id}": page(404),
    "GET /guidelines": page(),
    "GET /help": page(),
    "GET /api/v1/next": ranking(204),
    "PUT /api/v1/slots/{slot_id}/draft": ranking(422),
    "POST /api/v1/slots/{slot_id}/submit": ranking(404),
    "POST /api/v1/slots/{slot_id}/skip": ranking(422),
    "POST /api/v1/slots/{slot_id}/flag": ranking(422),
    "POST /api/v1/slots/{slot_id}/release": ranking(404),
    "POST /api/v1/slots/{slot_id}/renew": ranking(404),
    "POST /api/v1/annotations/{annotation_id}/revise": ranking(404),
    "GET /api/v1/me/history": ranking(200),
    "GET /api/v1/progress": reading(200, 200),
    "GET /api/v1/agreement": reading(200, 200),
    "GET /api/v1/annotators": reading(200, 200),
    "POST /api/v1/versions": reading(422, 403),
    "GET /api/v1/versions": reading(200, 403),
    "GET /api/v1/versions/{seq}/export": reading(404, 403),
    "POST /api/v1/tokens": row(401, 422, 422),
    "DELETE /api/v1/tokens/{token_id}": row(401, 404, 404),
    "GET /lead": lead_page(),
    "GET /lead/quality": lead_page(),
    "GET /lead/annotators": lead_page(),
    "GET /lead/accounts": lead_page(),
    "POST /lead/accounts/{annotator_id}": lead_page(422),
    "POST /lead/accounts/{annotator_id}/sign-out": lead_page(404),
    "POST /lead/tokens/{token_id}/revoke": lead_page(404),
    "POST /lead/invites/{sha256}/end": lead_page(404),
    "GET /lead/comparison": lead_page(),
    "GET /lead/review": lead_page(),
    "GET /lead/versions": lead_page(),
    "GET /lead/guidelines": lead_page(),
    "POST /lead/invites": lead_page(422),
    "POST /lead/annotators/{annotator_id}/status": lead_page(422),
    "POST /lead/review/{item_id}": lead_page(422),
    "POST /lead/versions": lead_page(422),
    "POST /lead/guidelines": lead_page(422),
}


def all_routes(database) -> list[str]:
    """Every route of the application, that of signing out last."""
    routes = iter_route_contexts(create_app(database).routes)
    found = [f"{method} {route.path}" for route in routes if route.path != "/static" for method in route.methods]
    return sorted(found, key=lambda route: (route == "POST /sign-out", route))


def ask(browser, route: str, **names):
    """The response to the route with nothing entered. names: of what its path speaks of, else "none"."""
    method, path = route.split()
    path = re.sub(r"{(\w+)}", lambda name: str(names.get(name[1], 1 if name[1] == "seq" else "none")), path)
    sent = {} if method == "GET" else {"json": {}} if path.startswith("/api/") else {"data": {"nothing": ""}}
    return browser.request(method, path, headers={"Idempotency-Key": "0123456789"}, **sent)


def outcome(answer):
    return SIGN_IN if answer.headers.get("location", "").startswith("/sign-in?") else answer.status_code


@pytest.fixture
def sqlite(tmp_path, make_collection) -> Database:
    return make_collection(f"sqlite:///{tmp_path}/collect.db")


@pytest.fixture(params=PUBLIC)
def who(request, sqlite):
    """(name, their browser or script)."""
    browsers = {
        "nobody": lambda: client(sqlite),
        "annotator": lambda: browser_of(sqlite, "alice"),
        "lead": lambda: browser_of(sqlite, "lea", "lead"),
        "ranking_token": lambda: with_origin(script_of(sqlite, join(sqlite, "alice"), "annotate")),
        "reading_token": lambda: with_origin(script_of(sqlite, join(sqlite, "lea", "lead"), "read")),
    }
    return request.param, browsers[request.param]()


def with_origin(script):
    """As if it was one of our pages, so that what refuses is the token."""
    script.headers.update(SAME_ORIGIN)
    return script


def test_each_route_lets_in_whom_the_table_says(sqlite, who):
    name, browser = who
    got = {route: outcome(ask(browser, route)) for route in all_routes(sqlite)}
    assert got == {route: expected[name] for route, expected in TABLE.items()}


def test_a_paused_lead_sees_what_an_annotator_sees(sqlite):
    browser = browser_of(sqlite, "lea", "lead")
    reader = script_of(sqlite, join(sqlite, "leo", "lead"), "read", "export")
    join(sqlite, "another", "lead")
    with sqlite.write() as session:
        for person in session.scalars(select(Annotator).where(Annotator.handle != "another")):
            accounts.set_status(session, person.id, "paused", "another lead", NOW)
    for route in [route for route in TABLE if TABLE[route]["annotator"] == 403]:
        assert outcome(ask(browser, route)) == 403
        assert outcome(ask(reader, route)) in (403, SIGN_IN)


CHANGING = [route for route in TABLE if not route.startswith(("GET", "HEAD"))]


@pytest.mark.parametrize("role", ["annotator", "lead"])
def test_nothing_changes_without_the_csrf_token(sqlite, role):
    browser = browser_of(sqlite, "alice", role)
    del browser.headers["X-CSRF-Token"]
    assert {route: ask(browser, route).status_code for route in CHANGING} == dict.fromkeys(CHANGING, 403)


@pytest.mark.parametrize("role", ["annotator", "lead"])
def test_nothing_changes_at_the_request_of_another_site(sqlite, role):
    browser = browser_of(sqlite, "alice", role)
    browser.headers["Sec-Fetch-Site"] = "cross-site"
    assert {route: ask(browser, route).status_code for route in CHANGING} == dict.fromkeys(CHANGING, 403)


# What annotators do not learn

PLANTED = "planted"  # in all that is none of an annotator's business


def item(i: int, **options) -> NewItem:
    responses = [NewResponse(f"{i}.{j}", {"policy": f"{PLANTED} policy {j}", "seed": 987654321}) for j in range(3)]
    names = {"prompt_id": f"{PLANTED} id {i}", "group": f"{PLANTED} group", "meta": {"why": f"{PLANTED} meta"}}
    return NewItem([{"role": "user", "content": f"Prompt {i}?"}], responses, f"file:{i}", **names, **options)


@pytest.fixture
def world(tmp_path, make_collection) -> Database:
    """Gold items, comparisons and ordinary ones, which somebody else has ranked, skipped and flagged; all is marked."""
    settings = {"overlap": 3, "agreement_overlap": 3, "gold_share": 0.5, "repeat_share": 0.5}
    database = make_collection(f"sqlite:///{tmp_path}/collect.db", **settings)
    with database.write() as session:
        golds = [item(i, gold_ranks=[1, 2, 3]) for i in range(6)]
        compared = [item(i, comparison=f"{PLANTED} comparison") for i in range(6, 9)]
        add_items(session, [*golds, *compared, *(item(i) for i in range(9, 28))], "command line", NOW)
    bob = join(database, f"{PLANTED}-bob")
    remark = {"comment": f"{PLANTED} comment", "demonstration": f"{PLANTED} answer", "client": {"x": PLANTED}}
    for _ in range(8):
        hand_in(database, bob, take(database, bob, NOW), NOW + 60, **remark)
    skipped = take(database, bob, NOW)
    with database.write() as session:
        queue.flag(session, bob, skipped.slot_id, None, f"{PLANTED} reason", f"{PLANTED} note", NOW)
        queue.skip(session, bob, skipped.slot_id, f"{PLANTED} reason", NOW)
    return database


def listening(browser) -> list:
    """All responses that the browser gets from now on."""
    heard = []
    browser.event_hooks["response"].append(lambda answer: (answer.read(), heard.append(answer)))
    return heard


def rank_all(browser) -> list[dict]:
    """Works through the queue by the API, with a look at the pages and a mistake here and there."""
    works = []
    while (answer := browser.get("/api/v1/next")).status_code == 200:
        works.append(answer.json())
        act(browser, works[-1], len(works))
    return works


def act(browser, work: dict, number: int) -> None:
    slot = f"/api/v1/slots/{work['slot_id']}"
    said = {"ranks": {response["id"]: i + 1 for i, response in enumerate(work["responses"])}}
    browser.put(f"{slot}/draft", json={"rev": 0, "payload": said})
    if number % 5 == 0:
        browser.get("/rank")
        browser.put(f"{slot}/draft", json={"rev": 7, "payload": {}})
        browser.post(f"{slot}/renew")
        browser.post(f"{slot}/flag", json={"response_id": None, "reason": "odd"})
        browser.post(f"{slot}/skip", json={"reason": "too hard"})
        return
    stored = browser.post(f"{slot}/submit", json=said, headers={"Idempotency-Key": f"{number:08}"}).json()
    revise = f"/api/v1/annotations/{stored['annotation_id']}/revise"
    browser.post(revise, json=said, headers={"Idempotency-Key": f"again {number}"})


@pytest.mark.slow
def test_no_response_to_an_annotator_holds_what_is_of_others_or_hidden(world):
    alice = browser_of(world, "alice")
    heard = listening(alice)
    assert len(rank_all(alice)) >= 22  # not gold items, which may not all come
    with world.read() as session:
        others = session.scalars(select(Slot).join(Annotator).where(Annotator.handle.startswith(PLANTED))).all()
        theirs = [{"slot_id": slot.id, "item_id": slot.item_id, "annotator_id": slot.annotator_id} for slot in others]
    for names in [{}, *theirs[:3]]:
        for route in all_routes(world):
            ask(alice, route, **names)
            sign_in(alice, "alice") if route == "POST /sign-out" else None
    raw = [bytes(str(answer.headers), "utf-8") + answer.content for answer in heard]
    assert len(raw) > 100 and any(b"Prompt 12?" in one for one in raw)
    words = (PLANTED.encode(), b"987654321", b"gold", b"repeat", b"11" * 16, b"00" * 16)
    assert [one for one in raw if any(word in one for word in words)] == []
    api = [answer.text for answer in heard if answer.url.path.startswith("/api/")]
    assert not [one for one in api if re.search('"(kind|item_id|source|sources|comparison|priority|annotator)"', one)]


def shape(value):
    """Names and types, all the way down."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else type(value)


@pytest.mark.slow
def test_gold_items_and_repeats_look_like_all_others(world):
    alice = browser_of(world, "alice")
    heard = listening(alice)
    shapes, headers = {}, {}
    ids = [one for work in rank_all(alice) for one in (work["slot_id"], *(one["id"] for one in work["responses"]))]
    assert all(re.fullmatch("[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", one) for one in ids)  # random UUIDs
    handed = [answer for answer in heard if answer.url.path == "/api/v1/next" and answer.status_code == 200]
    with world.read() as session:
        for answer in handed:
            kind = session.scalar(select(Item.kind).join(Slot).where(Slot.id == answer.json()["slot_id"]))
            shapes.setdefault(kind, set()).add(str(shape(answer.json())))
            headers.setdefault(kind, set()).add(str(sorted(answer.headers)))
    assert set(shapes) == {"gold", "normal", "repeat"}
    assert shapes["gold"] == shapes["normal"] == shapes["repeat"] and len(shapes["gold"]) == 1
    assert headers["gold"] == headers["normal"] == headers["repeat"] and len(headers["gold"]) == 1


def test_one_person_cannot_act_on_the_item_of_another(sqlite):
    add_new_items(sqlite, 1)
    bob = join(sqlite, "bob")
    work = take(sqlite, bob, NOW)
    alice = browser_of(sqlite, "alice")
    slot = f"/api/v1/slots/{work.slot_id}"
    assert alice.put(f"{slot}/draft", json={"rev": 0, "payload": {}}).status_code in (404, 409)
    assert alice.post(f"{slot}/skip", json={"reason": "x"}).status_code == 409
    assert alice.post(f"{slot}/flag", json={"reason": "x"}).status_code == 409
    assert alice.post(f"{slot}/release").status_code == 409
    assert alice.post(f"{slot}/submit", json=body(work), headers={"Idempotency-Key": "k" * 8}).status_code == 409
    with sqlite.read() as session:
        stored = session.get(Slot, work.slot_id)
        assert (stored.annotator_id, stored.state) == (bob.id, "held")

"""The ranking page in a real browser: the application on a free port, and hands that rank."""

import socket
import threading
import time
from contextlib import contextmanager

import uvicorn
from collect_world import add_annotator
from sqlalchemy import select

from reward.collect.people import sessions
from reward.collect.ranking.items import NewItem, NewResponse, add_items
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotation
from reward.collect.web.app import create_app


class Clock:
    """The server's time, which a test can put forward."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@contextmanager
def served(database: Database, clock: Clock):
    """The address of the application, on loopback."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(database, now=clock), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def session_cookie(database: Database, handle: str, now: float) -> str:
    """A new person, signed in. Passwords and invites have tests of their own."""
    with database.write() as session:
        return sessions.open_session(session, add_annotator(session, handle).id, now)


def annotations_of(database: Database) -> list[Annotation]:
    with database.read() as session:
        return list(session.scalars(select(Annotation).order_by(Annotation.submitted_at, Annotation.revision)))


def by_letter(annotation: Annotation) -> dict:
    """What the database holds, by the letters that the person saw."""
    letters = dict(zip(annotation.display_order, "ABCDEFGHI", strict=False))
    ranks = {letters[one]: rank for one, rank in annotation.ranks.items()}
    return {"ranks": ranks, "unacceptable": [letters[one] for one in annotation.unacceptable]}


def add_texts(database: Database, prompt: str, responses: list[str]) -> None:
    """One item of these very texts."""
    item = NewItem([{"role": "user", "content": prompt}], [NewResponse(text, {}) for text in responses], "test:1")
    with database.write() as session:
        add_items(session, [item], "command line", time.time())


# What a person sees and does


def submit(page) -> None:
    page.get_by_role("button", name="Submit", exact=True).click()


def stored(page) -> str:
    """What the server says that it stored."""
    return page.get_by_test_id("stored").inner_text()


def message(page) -> str:
    """What stands in the way, as the page says it."""
    return page.locator("#message:not([hidden])").inner_text()


def state_is(page, state: str) -> None:
    """Waits until the page says so of the draft."""
    page.locator(f"#save-state[data-state={state}]").wait_for()


def ranks_shown(page) -> dict:
    return {letter: page.get_by_test_id(f"card-{letter}").get_attribute("data-rank") for letter in "ABCD"}


# Five ways to enter B > A = C, D unacceptable. Each leaves it to the test to submit.


def rank_by_dragging(page, pointer) -> None:
    drag(page, "B", page.get_by_test_id("place-1"), pointer)
    drag(page, "A", page.get_by_test_id("place-2"), pointer)
    drag(page, "C", page.get_by_test_id("place-2"), pointer)
    drag(page, "D", page.locator("#unacceptable"), pointer)


def rank_by_buttons(page) -> None:
    press(page, "B", "Move up")
    press(page, "A", "Move up")
    press(page, "C", "Tie with the one above")
    press(page, "D", "Unacceptable")


def rank_by_selects(page) -> None:
    for letter, place in {"C": "2", "D": "unacceptable", "A": "2", "B": "1"}.items():
        choose(page, letter, place)


def rank_by_keyboard(page) -> None:
    for key in ("c", "1", "b", "1", "Alt+ArrowUp", "a", "3", "=", "d", "x"):
        page.keyboard.press(key)


WAYS = {
    "mouse": lambda page: rank_by_dragging(page, Mouse(page)),
    "touch": lambda page: rank_by_dragging(page, Finger(page)),
    "buttons": rank_by_buttons,
    "select": rank_by_selects,
    "keyboard": rank_by_keyboard,
}


def press(page, letter: str, name: str) -> None:
    page.get_by_role("button", name=f"{name}: response {letter}", exact=True).click()


def choose(page, letter: str, place: str) -> None:
    page.get_by_label(f"Rank of response {letter}").select_option(place)


def drag(page, letter: str, target, pointer, share: float = 0.5) -> None:
    """Drags a card to the point of the target that is this share of its height from its top."""
    page.locator("#orderable").evaluate("element => element.scrollIntoView({block: 'start'})")
    pointer.press(*middle(page.get_by_test_id(f"card-{letter}").locator(".handle").bounding_box()))
    pointer.move_by(8, 8)
    box = target.bounding_box()  # now, that the cards are short
    pointer.move_to(box["x"] + box["width"] / 2, box["y"] + box["height"] * share)
    pointer.release()


def middle(box: dict) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


class Mouse:
    def __init__(self, page):
        self.mouse, self.at = page.mouse, (0, 0)

    def press(self, x: float, y: float) -> None:
        self.mouse.move(x, y)
        self.mouse.down()
        self.at = (x, y)

    def move_by(self, right: float, down: float) -> None:
        self.mouse.move(self.at[0] + right, self.at[1] + down, steps=3)

    def move_to(self, x: float, y: float) -> None:
        self.mouse.move(x, y, steps=8)

    def release(self) -> None:
        self.mouse.up()


class Finger:
    def __init__(self, page):
        self.devtools, self.at = page.context.new_cdp_session(page), (0, 0)

    def press(self, x: float, y: float) -> None:
        self._touch("touchStart", x, y)

    def move_by(self, right: float, down: float) -> None:
        self._touch("touchMove", self.at[0] + right, self.at[1] + down)

    def move_to(self, x: float, y: float) -> None:
        left, top = self.at
        for step in range(1, 6):
            self._touch("touchMove", left + (x - left) * step / 5, top + (y - top) * step / 5)

    def release(self) -> None:
        self.devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def _touch(self, kind: str, x: float, y: float) -> None:
        self.at = (x, y)
        self.devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})

"""How long each page and command of the collection server takes, and how much memory, in a collection of a given size.

`python -m stages.bench bench.what=collect_size` makes one of bench.collect_items and bench.collect_rankings in run.dir;
where one is there already, that one is measured.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from urllib.parse import urlencode

import numpy as np

from rlhf.config.schema import Config
from rlhf.errors import RlhfError
from rlhf.tables import markdown_table
from stages.benches.collect import serving
from stages.benches.connections import PacedAnnotator, peak_memory

NUM_REQUESTS, MOST_SECONDS = 20, 60  # of each page
NUM_AT_WORK, WORK_SECONDS = 10, 30  # annotators whose requests are timed without and beside a lead who clicks
FIGURE_SECONDS = 600  # that the first figures may take
TIMEOUT = 300
PAGES = {
    "lead": ("/lead", "/lead/quality", "/lead/annotators", "/lead/comparison", "/lead/review", "/lead/versions"),
    "person-0": ("/rank", "/history", "/guidelines"),
}


def measure(cfg: Config) -> list[dict]:
    """A row of each page, of the annotators' requests, and of each command."""
    folder = Path(cfg.run.dir).absolute()
    url, tokens = prepare(folder, cfg.bench.collect_items, cfg.bench.collect_rankings)
    with serving(folder, url) as (port, process):
        rows = [first_figures(port)]
        rows += [page_row(port, handle, path) for handle, paths in PAGES.items() for path in paths]
        rows += [requests_row(port, tokens, clicks) for clicks in (False, True)]
        rows.append({"what": "the server's memory", "peak": peak_memory(process.pid)})
    made = [sys.executable, "-m", "reward.collect"]
    rows += [command_row(name, [*made, name, "--dir", str(folder)]) for name in ("stats", "backup", "export")]
    asked = json.dumps({"url": url, "now": time.time()})
    return [*rows, command_row("the figures, by another process", [*made[:2], "reward.collect.figures.kept"], asked)]


def prepare(folder: Path, num_items: int, num_rankings: int) -> tuple[str, list[str]]:
    """(URL of the collection in the folder, a token of each annotator who is at work)."""
    from reward.collect.made_up import make_collection
    from reward.collect.people import accounts
    from reward.collect.people import tokens as access
    from reward.collect.store.database import Database

    folder.mkdir(parents=True, exist_ok=True)
    is_there = (folder / "collect.db").exists()
    database = Database(f"sqlite:///{folder}/collect.db")
    if not is_there:
        make_collection(database, num_items, num_rankings)
    tokens = []
    for number in range(NUM_AT_WORK):
        with database.write() as session:
            person = accounts.person_named(session, f"person-{number}")
            tokens.append(access.create_token(session, person, ["annotate"], 1, time.time())[0])
    database.close()
    return str(database.url), tokens


# -- pages --


class Browser:
    """Somebody who is signed in, on one connection."""

    def __init__(self, port: int, handle: str):
        from reward.collect.made_up import PASSWORD

        self._connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        origin = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/x-www-form-urlencoded"}
        form = urlencode({"handle": handle, "password": PASSWORD})
        self._connection.request("POST", "/sign-in", form, origin)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 303:
            raise RlhfError(f"{handle} cannot sign in: {answer.status}")
        self._cookie = answer.headers["Set-Cookie"].partition(";")[0]

    def get(self, path: str) -> tuple[float, str]:
        """(seconds, the page)."""
        begun = time.perf_counter()
        self._connection.request("GET", path, headers={"Cookie": self._cookie})
        answer = self._connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise RlhfError(f"GET {path}: {answer.status} {text[:300]!r}")
        return time.perf_counter() - begun, text


def first_figures(port: int) -> dict:
    """How long a lead waits for the first figures, from the first click on."""
    browser, begun = Browser(port, "lead"), time.perf_counter()
    while "are being made" in browser.get("/lead/quality")[1]:
        if time.perf_counter() - begun > FIGURE_SECONDS:
            raise RlhfError(f"no figures after {FIGURE_SECONDS} s")
        time.sleep(0.2)
    return {"what": "until the first figures are shown", "times": [time.perf_counter() - begun]}


def page_row(port: int, handle: str, path: str) -> dict:
    browser, times = Browser(port, handle), []
    while len(times) < NUM_REQUESTS and sum(times) < MOST_SECONDS:
        times.append(browser.get(path)[0])
    return {"what": path, "times": times}


def requests_row(port: int, tokens: list[str], clicks: bool) -> dict:
    """The requests of annotators at work, beside a lead who looks at Quality once a second, or not."""
    people, done = [PacedAnnotator(port, token, seed) for seed, token in enumerate(tokens)], Event()
    with ThreadPoolExecutor(len(people) + 1) as pool:
        work = [pool.submit(one.work_for, WORK_SECONDS) for one in people]
        lead = pool.submit(click, port, done) if clicks else None
        for one in work:
            one.result()
        done.set()
        if lead:
            lead.result()
    what = "annotators' requests" + (", beside a lead who clicks" if clicks else "")
    return {"what": what, "times": [one for person in people for one in person.seconds]}


def click(port: int, done: Event) -> None:
    browser = Browser(port, "lead")
    while not done.wait(1):
        browser.get("/lead/quality")


# -- commands --


def command_row(name: str, command: list[str], said: str = "") -> dict:
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    process.stdin.write(said)
    process.stdin.close()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RlhfError(f"{' '.join(command)}: failed")
    return {"what": name, "times": [time.perf_counter() - begun], "peak": used.ru_maxrss * 1024}


def markdown(rows: list[dict]) -> list[str]:
    """The figures as a Markdown table."""
    return list(markdown_table(("what", "times", "median", "p95", "peak memory"), map(row_cells, rows)))


def row_cells(row: dict) -> tuple[str, ...]:
    times = row.get("times", [])
    quantiles = [seconds(float(np.quantile(times, q))) if times else "" for q in (0.5, 0.95)]
    return row["what"], str(len(times) or ""), *quantiles, f"{row['peak'] / 1e6:.0f} MB" if "peak" in row else ""


def seconds(time: float) -> str:
    return f"{time:.1f} s" if time >= 1 else f"{1000 * time:.0f} ms"

"""Simulated annotators against a real collection server: what it stores per second, and how long a submission takes.

`python -m stages.bench bench.what=collect` runs it on SQLite and, where bench.collect_database is set, on PostgreSQL.
"""

import json
import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np

from rlhf.config.schema import Config
from rlhf.errors import RlhfError
from rlhf.tables import markdown_table

NUM_ANNOTATORS = 50
NUM_ITEMS = 1000
NUM_ANSWERS = 4
OVERLAP = 2
START_SECONDS = 60
COLUMNS = ("database", "annotators", "submissions", "seconds", "per second", "p50", "p99", "slowest")


def plain_connection(port: int) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", port, timeout=60)


@dataclass
class Acknowledged:
    """A submission that the server said it stored. seconds: from sending it to having the answer."""

    annotation_id: str
    ranks: dict
    seconds: float


@dataclass
class SimulatedAnnotator:
    """Ranks what it is given at random, as fast as the server answers, over one kept-alive connection."""

    port: int
    token: str
    seed: int
    acknowledged: list[Acknowledged] = field(default_factory=list)
    connect: Callable[[int], HTTPConnection] = plain_connection

    def __post_init__(self):
        self._connection = self.connect(self.port)
        self._random = random.Random(self.seed)

    def work(self, limit: int | None = None) -> list[Acknowledged]:
        """Ranks until nothing is left, or `limit` items. Returns what was acknowledged."""
        while limit is None or len(self.acknowledged) < limit:
            status, item = self._call("GET", "next")
            if status == 204:
                break
            self._rank(item)
        self._connection.close()
        return self.acknowledged

    def work_until_cut_off(self) -> list[Acknowledged]:
        """Ranks until the server is gone."""
        try:
            return self.work()
        except (OSError, HTTPException):
            return self.acknowledged

    def _rank(self, item: dict) -> None:
        ranks = {response["id"]: self._random.randint(1, len(item["responses"])) for response in item["responses"]}
        body = {"ranks": ranks, "active_seconds": 1.0}
        slot = f"slots/{item['slot_id']}"
        self._call("PUT", f"{slot}/draft", {"rev": item["draft_rev"], "payload": body})
        begun = time.perf_counter()
        _, stored = self._call("POST", f"{slot}/submit", body, {"Idempotency-Key": uuid.uuid4().hex})
        seconds = time.perf_counter() - begun
        self.acknowledged.append(Acknowledged(stored["annotation_id"], stored["ranks"], seconds))

    def _call(self, method: str, path: str, body: dict | None = None, headers: dict | None = None):
        """(status, decoded body). Raises RlhfError for anything but success."""
        content = None if body is None else json.dumps(body)
        common = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self._connection.request(method, f"/api/v1/{path}", content, common | (headers or {}))
        response = self._connection.getresponse()
        text = response.read()
        if response.status not in (200, 204):
            raise RlhfError(f"{method} {path}: {response.status} {text[:300]!r}")
        return response.status, json.loads(text) if text else None


def annotators_of(port: int, tokens: list[str]) -> list[SimulatedAnnotator]:
    return [SimulatedAnnotator(port, token, seed) for seed, token in enumerate(tokens)]


def annotate(annotators: list[SimulatedAnnotator], cut_off: bool = False) -> list[Acknowledged]:
    """What they got acknowledged, all at work at once. cut_off: until the server is gone."""
    with ThreadPoolExecutor(len(annotators)) as pool:
        work = [pool.submit(one.work_until_cut_off if cut_off else one.work) for one in annotators]
        return [done for future in work for done in future.result()]


def prepare(url: str, num_items: int, num_annotators: int, overlap: int = OVERLAP) -> list[str]:
    """Makes a collection of made-up items in an empty database; returns a token of each annotator."""
    from reward.collect.home import create_collection
    from reward.collect.people import accounts
    from reward.collect.people import tokens as keys
    from reward.collect.ranking import items
    from reward.collect.store.database import Database
    from reward.collect.store.settings import Settings

    database, now = Database(url), time.time()
    settings = Settings(overlap=overlap, agreement_overlap=overlap, gold_share=0.0)
    create_collection(database, "bench", "", settings, now)
    made_up = [_made_up_item(number) for number in range(num_items)]
    with database.write() as session:
        items.add_items(session, made_up, "bench", now)
    tokens = []
    for number in range(num_annotators):
        with database.write() as session:
            secret = accounts.create_invite(session, "annotator", 1, "bench", now)
            annotator = accounts.accept_invite(session, secret, f"simulated-{number}", uuid.uuid4().hex, now)
            tokens.append(keys.create_token(session, annotator, ["annotate"], 1, now)[0])
    database.close()
    return tokens


def _made_up_item(number: int):
    from reward.collect.ranking.items import NewItem, NewResponse

    responses = [
        NewResponse(f"Answer {n} to question {number}. " * 20, {"policy": "made up"}) for n in range(NUM_ANSWERS)
    ]
    return NewItem(({"role": "user", "content": f"Question {number}?"},), responses, where=f"made up:{number}")


@contextmanager
def serving(folder: Path, url: str, *options: str, under: tuple[str, ...] = (), connect=plain_connection):
    """(port, process) of `python -m reward.collect serve` once it is ready; killed at the end, if it still runs.

    under: a command that runs the command line given to it.
    """
    port = _free_port()
    command = [*under, sys.executable, "-m", "reward.collect", "serve", "--dir", str(folder), "--database", url]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen([*command, "--port", str(port), *options], stdout=log, stderr=log)
    try:
        _wait_until_ready(connect(port), process, folder / "server.log")
        yield port, process
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_until_ready(connection: HTTPConnection, process, log: Path) -> None:
    for _ in range(START_SECONDS * 10):
        if process.poll() is not None:
            break
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise RlhfError(f"the collection server did not start; its last words: {log.read_text()[-500:]}")


def measure(cfg: Config) -> list[dict]:
    """A row per database."""
    folder = Path(cfg.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "collect.db"
    file.unlink(missing_ok=True)
    urls = {"SQLite": f"sqlite:///{file.absolute()}"}
    if cfg.bench.collect_database is not None:
        urls["PostgreSQL"] = cfg.bench.collect_database
    return [measure_database(name, url, folder) for name, url in urls.items()]


def measure_database(name: str, url: str, folder: Path) -> dict:
    tokens = prepare(url, NUM_ITEMS, NUM_ANNOTATORS)
    with serving(folder, url) as (port, _):
        begun = time.perf_counter()
        acknowledged = annotate(annotators_of(port, tokens))
        seconds = time.perf_counter() - begun
    if len(acknowledged) != NUM_ITEMS * OVERLAP:
        raise RlhfError(f"{len(acknowledged)} submissions for {NUM_ITEMS} items with overlap {OVERLAP}")
    latencies = np.array([one.seconds for one in acknowledged])
    return {
        "database": name,
        "annotators": NUM_ANNOTATORS,
        "submissions": len(acknowledged),
        "seconds": seconds,
        "per_second": len(acknowledged) / seconds,
        "p50": float(np.quantile(latencies, 0.5)),
        "p99": float(np.quantile(latencies, 0.99)),
        "slowest": float(latencies.max()),
    }


def markdown(rows: list[dict]) -> list[str]:
    """The figures as a Markdown table, a row per database; times of one submission in milliseconds."""
    return list(markdown_table(COLUMNS, map(row_cells, rows)))


def row_cells(row: dict) -> tuple[str, ...]:
    times = [f"{1000 * row[key]:.0f} ms" for key in ("p50", "p99", "slowest")]
    counts = (str(row["annotators"]), str(row["submissions"]), f"{row['seconds']:.1f}", f"{row['per_second']:.0f}")
    return row["database"], *counts, *times

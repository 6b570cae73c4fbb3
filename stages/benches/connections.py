"""Annotators beside a crowd that holds connections and sends nothing whole: do their pages still come, and is the log
still readable? `python -m stages.bench bench.what=connections`

The crowd opens again, once a second, each connection that the server has closed.
"""

import resource
import select
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

import numpy as np

from rlhf.config.schema import Config
from rlhf.errors import RlhfError
from rlhf.tables import markdown_table
from stages.benches.collect import SimulatedAnnotator, prepare, serving

NUM_ANNOTATORS = 20
NUM_ITEMS = 1500
PAUSE = 0.5  # seconds that a person thinks; afterwards the browser connects anew
SECONDS = 30
TIMEOUT = 10  # after which a request counts as failed
IDLE, HALF_SENT = 1100, 200  # connections of the crowd
CROWD_ADDRESS = "127.0.0.2"  # not the annotators': loopback has many
OPEN_FILES = 1024  # that the server may have: most systems' limit
LIMITED = ("sh", "-c", f'ulimit -n {OPEN_FILES}; exec "$@"', "sh")
HALF_A_REQUEST = b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le"
COLUMNS = ("protocol", "crowd", "requests", "failed", "p50", "p95", "slowest", "log a minute", "memory")


@dataclass
class PacedAnnotator(SimulatedAnnotator):
    """Ranks with pauses for a fixed time, over a new connection for each item."""

    seconds: list[float] = field(default_factory=list)  # of each request that was answered
    num_failed: int = 0

    def work_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self._rank(self._call("GET", "next")[1])
            except (OSError, HTTPException, RlhfError):
                self.num_failed += 1
            self._connection.close()
            time.sleep(PAUSE)

    def _call(self, *arguments):
        begun = time.perf_counter()
        answer = super()._call(*arguments)
        self.seconds.append(time.perf_counter() - begun)
        return answer


def measure(cfg: Config) -> list[dict]:
    """A row for each protocol, without and with the crowd."""
    folder = Path(cfg.run.dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return [
        measure_one(folder / f"{protocol}-{'crowd' if crowd else 'alone'}", protocol, crowd)
        for protocol in ("http", "https")
        for crowd in (False, True)
    ]


def measure_one(folder: Path, protocol: str, crowd: bool) -> dict:
    folder.mkdir()  # a second run in the same folder would measure its leftovers
    url = f"sqlite:///{folder}/collect.db"
    tokens = prepare(url, NUM_ITEMS, NUM_ANNOTATORS)
    options, connect = reached_by(protocol, folder)
    with serving(folder, url, *options, under=LIMITED, connect=connect) as (port, process):
        people = [PacedAnnotator(port, token, seed, connect=connect) for seed, token in enumerate(tokens)]
        with beside(port, protocol) if crowd else nullcontext(), ThreadPoolExecutor(NUM_ANNOTATORS) as pool:
            list(pool.map(lambda one: one.work_for(SECONDS), people))
        memory = peak_memory(process.pid)
    return {"protocol": protocol, "crowd": crowd, "memory": memory} | figures(people, folder / "server.log")


def reached_by(protocol: str, folder: Path) -> tuple[list[str], partial]:
    """(options of `serve`, how a client connects)."""
    if protocol == "http":
        return [], partial(HTTPConnection, "127.0.0.1", timeout=TIMEOUT)
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    made_by = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run([*made_by.split(), *names], check=True, capture_output=True)
    context = ssl.create_default_context(cafile=cert)
    return ["--tls-cert", cert, "--tls-key", key], partial(
        HTTPSConnection, "127.0.0.1", timeout=TIMEOUT, context=context
    )


def figures(people: list[PacedAnnotator], log: Path) -> dict:
    latencies = np.array([one for person in people for one in person.seconds] or [float("nan")])
    return {
        "requests": sum(len(person.seconds) for person in people),
        "failed": sum(person.num_failed for person in people),
        "p50": float(np.quantile(latencies, 0.5)),
        "p95": float(np.quantile(latencies, 0.95)),
        "slowest": float(latencies.max()),
        "log_per_minute": log.stat().st_size * 60 / SECONDS,  # bytes
    }


def peak_memory(pid: int) -> int:
    """The most that was resident, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def markdown(rows: list[dict]) -> list[str]:
    """The figures as a Markdown table; times of one request in milliseconds."""
    return list(markdown_table(COLUMNS, map(row_cells, rows)))


def row_cells(row: dict) -> tuple[str, ...]:
    times = [f"{1000 * row[key]:.0f} ms" for key in ("p50", "p95", "slowest")]
    crowd = f"{IDLE} idle, {HALF_SENT} half sent" if row["crowd"] else "none"
    sizes = (f"{row['log_per_minute'] / 1e3:,.1f} kB", f"{row['memory'] / 1e6:.0f} MB")
    return row["protocol"], crowd, str(row["requests"]), str(row["failed"]), *times, *sizes


# The crowd, in a process of its own


@contextmanager
def beside(port: int, protocol: str):
    """The crowd at a server's port, once all have connected or could not."""
    command = [sys.executable, "-m", "stages.benches.connections", str(port), protocol]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def crowd(port: int, protocol: str) -> None:
    """Holds IDLE + HALF_SENT connections until it is killed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    half = HALF_A_REQUEST if protocol == "http" else b"\x16\x03\x01\x02"  # of the first message of TLS
    sent = [b""] * IDLE + [half] * HALF_SENT
    held = [connection_that_sent(one, port) for one in sent]
    print("all are there", flush=True)
    while True:
        held = [one if is_open(one) else connection_that_sent(said, port) for one, said in zip(held, sent, strict=True)]
        time.sleep(1)


def connection_that_sent(said: bytes, port: int) -> socket.socket | None:
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=0.2, source_address=(CROWD_ADDRESS, 0))
        connection.sendall(said)
    except OSError:
        return None
    return connection


def is_open(connection: socket.socket | None) -> bool:
    """Whether the server holds it, too: what is closed can be read, and a server says nothing to half a request."""
    if connection is None:
        return False
    with_news = select.poll()
    with_news.register(connection, select.POLLIN)
    return not with_news.poll(0)


if __name__ == "__main__":
    crowd(int(sys.argv[1]), sys.argv[2])

"""Clients that are slow, silent, too many or hostile, over real sockets."""

import asyncio
import http.client
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from reward.collect.web.app import create_app
from reward.collect.web.connections import Door, Limits, Server
from reward.collect.web.sparse_log import Sparse
from stages.benches import collect as bench_collect
from stages.benches import connections as bench_connections

pytestmark = pytest.mark.slow

POST = b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\n"
QUICK = Limits(connections=8, head=0.5, body=0.5, answer=0.5)
PATIENT = Limits(connections=8, head=60, body=60, answer=60)
PATIENCE = 180  # seconds until a test gives up; each waits for much less


@pytest.fixture
def database(tmp_path, make_collection):
    return make_collection(f"sqlite:///{tmp_path}/collect.db")


@contextmanager
def serving(app, limits: Limits):
    """The port of the application behind a door with these limits."""
    with Door(socket.create_server(("127.0.0.1", 0)), limits) as door:
        port = door.getsockname()[1]
        server = Server(app, door, log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=5)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def connect(port: int, said: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(said)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes the connection within PATIENCE."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def status_of(port: int, path: str = "/healthz") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path)
    return connection.getresponse().status


# The time that a client has


@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1\r\nHost: loc"])
def test_who_sends_no_whole_head_in_time_is_disconnected(database, caplog, said):
    with serving(create_app(database), QUICK) as port:
        assert is_closed(connect(port, said))
    assert caplog.messages == ["closed the connection of 127.0.0.1: no whole request for 0.5 s"]


@pytest.mark.parametrize("framing", [b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nha"])
def test_who_sends_no_whole_body_in_time_is_disconnected(database, caplog, framing):
    head = b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"
    with serving(create_app(database), QUICK) as port:
        assert is_closed(connect(port, head + form + framing))
        assert status_of(port) == 200
    late = "closed the connection of 127.0.0.1: the body of its request was not whole after 0.5 s"
    assert caplog.messages == [late, "127.0.0.1 left before its request was whole"] and "Traceback" not in caplog.text


def test_a_request_that_is_broken_off_costs_one_line(database, caplog):
    head = b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nContent-Length: 100\r\n"
    with serving(create_app(database), PATIENT) as port:
        connect(port, head + b"Content-Type: application/x-www-form-urlencoded\r\n\r\nhalf").close()
        wait_for(lambda: caplog.messages)
    assert caplog.messages == ["127.0.0.1 left before its request was whole"] and "Traceback" not in caplog.text


def test_a_body_without_end_is_cut_off(database):
    """Also after the answer, which has come long before."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serving(create_app(database), QUICK) as port, connect(port, head) as endless, pytest.raises(ConnectionError):
        while True:
            endless.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")


async def long_answer(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * 50_000_000})


def test_who_does_not_take_the_answer_in_time_is_disconnected(caplog):
    with serving(long_answer, QUICK) as port, connect(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        wait_for(lambda: caplog.messages)
    assert caplog.messages == ["closed the connection of 127.0.0.1: it has not taken the answer for 0.5 s"]


def test_who_takes_the_answer_slowly_gets_all_of_it():
    """Longer in all than the limit, which is for 16 KiB of it."""
    with serving(long_answer, QUICK) as port, connect(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") as slow:
        taken, began = 0, time.monotonic()
        while taken < 50_000_000 and (some := slow.recv(1_000_000)):
            taken += len(some)
            time.sleep(0.02)
        assert taken > 50_000_000 and time.monotonic() - began > 2 * QUICK.answer


def test_who_asks_again_in_time_stays_connected(database):
    with serving(create_app(database), QUICK) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for _ in range(10):
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read()
            time.sleep(0.2)
        assert answer.status == 200


async def slow_answer(scope, receive, send) -> None:
    await asyncio.sleep(1.5)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_the_time_that_the_server_takes_itself_counts_against_nobody():
    with serving(slow_answer, replace(QUICK, connections=2)) as port:
        first = connect(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.3)
        for _ in range(4):  # more than there are places
            connect(port)
        assert first.recv(100).startswith(b"HTTP/1.1 200")


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


# The number of connections


def test_when_all_places_are_taken_the_one_that_has_waited_longest_makes_room(database, caplog):
    with serving(create_app(database), PATIENT) as port:
        silent = [connect(port) for _ in range(PATIENT.connections)]
        assert status_of(port) == 200
        assert is_closed(silent[0])
        assert status_of(port) == 200
        for one in silent[2:]:
            one.settimeout(0.05)
            assert not is_closed(one)
    assert caplog.messages[0].startswith("closed the connection of 127.0.0.1, which was waiting for it: all 8 places")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on loopback")
def test_the_address_with_most_connections_makes_room(database):
    with serving(create_app(database), PATIENT) as port:
        other = socket.create_connection(("127.0.0.1", port), timeout=0.05, source_address=("127.0.0.2", 0))
        crowd = [connect(port) for _ in range(40)]
        assert status_of(port) == 200
        assert not is_closed(other) and is_closed(crowd[0])


@pytest.mark.parametrize("protocol", ["http", "https"])
def test_beside_thirteen_hundred_silent_connections_pages_come_and_the_log_stays_short(tmp_path, database, protocol):
    """In a process that may open 1,024 files, as most systems allow."""
    options, connect = bench_connections.reached_by(protocol, tmp_path)
    under = bench_connections.LIMITED
    with bench_collect.serving(tmp_path, str(database.url), *options, under=under, connect=connect) as (port, process):
        with bench_connections.beside(port, protocol):
            for _ in range(5):
                asked = connect(port, timeout=PATIENCE)
                asked.request("GET", "/sign-in")
                assert asked.getresponse().status == 200
                time.sleep(0.5)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    lines = (tmp_path / "server.log").read_text().splitlines()
    assert lines[0].startswith("Collecting rankings at ") and len(lines) < 6


def test_without_a_file_for_another_connection_newcomers_are_turned_away_without_a_busy_loop(tmp_path):
    """In a process of its own, which may open only a few files."""
    code = """
import asyncio, os, resource, socket, time
from reward.collect.web.connections import Door, Limits
async def main():
    door = Door(socket.create_server(("127.0.0.1", 0)), Limits())
    await (await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=door)).start_serving()
    print(door.getsockname()[1], flush=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    await asyncio.sleep(2)
    print(time.process_time() - began, flush=True)
began = time.process_time()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        port = int(process.stdout.readline())
        time.sleep(0.3)
        crowd = [connect(port) for _ in range(30)]
        assert is_closed(crowd[-1])
        told, error = process.communicate(timeout=PATIENCE)
    assert float(told) < 1.5 and len(error.splitlines()) <= 30


def test_a_process_that_may_open_too_few_files_is_told_how_many_it_needs():
    code = """
import resource
from reward.collect.web.connections import Limits, require_files
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 2000))
require_files(Limits(connections=512))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
require_files(Limits(connections=512))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "768\n"
    assert done.stderr.endswith("UserError: ulimit -n 300: the server needs 768 open files; allow it as many\n")


# What is no request of ours


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 10_000,
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    ],
    ids=[
        "tls",
        "a long header",
        "many headers",
        "two lengths",
        "length and chunks",
        "no coding",
        "two hosts",
        "a space",
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(database, said):
    """Two readings of one request are how a request is smuggled past a proxy."""
    with serving(create_app(database), PATIENT) as port, connect(port) as hostile:
        answer = answer_of(hostile, said)
    assert re.match(rb"HTTP/1.1 (400|431|501)", answer) or not answer


def answer_of(connection: socket.socket, said: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    answer = b""
    try:
        connection.sendall(said)
        while some := connection.recv(65536):
            answer += some
    except ConnectionError:
        pass
    return answer


def test_a_request_to_speak_websocket_is_answered_as_any_other(database):
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    with serving(create_app(database), PATIENT) as port, connect(port) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 200")


# The log


def test_a_line_of_the_same_kind_is_written_once_a_minute_and_counts_those_between(caplog):
    logger = logging.getLogger("test_connections")
    logger.addFilter(Sparse(seconds=0.2))
    for number in range(102):
        time.sleep(0.3 * (number == 101))
        logger.warning("closed %s", number)
    logger.warning("another kind")
    assert caplog.messages == ["closed 0", "closed 101 (and 100 more times before)", "another kind"]

"""The server as a process: where it listens, what it refuses, and how it stops."""

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from browsers import PASSWORD, join

from reward.collect import home
from reward.collect.web.server import require_safe, serve
from rlhf.errors import UserError

pytestmark = pytest.mark.slow

HTTPS = "https://rank.example.org"
START_SECONDS = 180


@pytest.fixture
def url(tmp_path, make_collection) -> str:
    """A collection in which alice has an account."""
    join(make_collection(f"sqlite:///{tmp_path}/collect.db"), "alice")
    return f"sqlite:///{tmp_path}/collect.db"


@pytest.fixture
def certificate(tmp_path) -> tuple[str, str]:
    """(certificate, key) of rank.example.org, signed by itself."""
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    made_with = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=rank.example.org", "-days", "2", "-keyout", key, "-out", cert]
    subprocess.run([*made_with, *names], check=True, capture_output=True)
    return cert, key


@contextmanager
def running(url: str, **options):
    """(process, port, the lines printed so far) of a server on a free port."""
    code = f"from reward.collect.web.server import serve; serve({url!r}, port=0, **{options!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        line = process.stdout.readline()
        shown = re.search(r":(\d+) \(Ctrl-C", line)
        yield process, int(shown[1]) if shown else None, line
    finally:
        process.kill()
        process.communicate(timeout=START_SECONDS)


def get(port: int, path: str, host="127.0.0.1"):
    connection = http.client.HTTPConnection(host, port, timeout=START_SECONDS)
    connection.request("GET", path)
    return connection.getresponse()


# Where it listens


def test_it_listens_on_this_machine_alone_and_prints_the_link(url):
    with running(url) as (_, port, line):
        assert line == f"Collecting rankings at http://127.0.0.1:{port} (Ctrl-C stops)\n"
        assert get(port, "/healthz").status == get(port, "/readyz").status == 200
        assert get(port, "/sign-in").getheader("server") is None
        with pytest.raises(OSError), socket.create_connection((other_address(), port), timeout=2):
            pass


def other_address() -> str:
    """An address of this machine beside 127.0.0.1, as others would use."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network address but loopback")
        return probe.getsockname()[0]


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "::", "rank.example.org", ""])
def test_beyond_this_machine_it_refuses_to_carry_passwords_in_the_clear(host):
    with pytest.raises(UserError, match="is reached by others, and passwords would travel in the clear; give"):
        require_safe(host, None, None, None, behind_proxy=False)
    with pytest.raises(UserError, match="passwords would travel in the clear"):
        require_safe(host, HTTPS, None, None, behind_proxy=False)


def test_beyond_this_machine_it_must_know_its_name(certificate):
    for tls, behind_proxy in ((certificate, False), ((None, None), True)):
        with pytest.raises(UserError, match="say by which name: --origin https://NAME"):
            require_safe("0.0.0.0", None, *tls, behind_proxy)
        assert require_safe("0.0.0.0", HTTPS, *tls, behind_proxy) == HTTPS


@pytest.mark.parametrize(
    "origin",
    [
        "http://rank.example.org",
        "rank.example.org",
        f"{HTTPS}/x",
        "https://",
        "https://a@b",
        "https://[::1",
        "https://a:b",
    ],
)
def test_an_origin_is_a_bare_https_address(origin):
    with pytest.raises(UserError, match="must be https://NAME or https://NAME:PORT and nothing else"):
        require_safe("127.0.0.1", origin, None, None, behind_proxy=True)


def test_an_origin_is_kept_as_browsers_write_it():
    assert require_safe("127.0.0.1", "https://Rank.Example.org:443/", None, None, True) == HTTPS
    assert require_safe("127.0.0.1", f"{HTTPS}:8443", None, None, True) == f"{HTTPS}:8443"


def test_a_certificate_that_cannot_be_used_is_refused(certificate, tmp_path):
    cert, key = certificate
    with pytest.raises(UserError, match="tls_cert and tls_key belong together"):
        require_safe("127.0.0.1", None, cert, None, False)
    with pytest.raises(UserError, match=r"cannot be used \(.*No such file"):
        require_safe("127.0.0.1", None, cert, str(tmp_path / "none.pem"), False)
    with pytest.raises(UserError, match="cannot be used"):
        require_safe("127.0.0.1", None, key, cert, False)


def test_beyond_this_machine_somebody_must_have_an_account(tmp_path, make_collection):
    make_collection(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(UserError, match=r"nobody has an account yet; serve it on 127\.0\.0\.1 first, and there open"):
        serve(f"sqlite:///{tmp_path}/empty.db", "0.0.0.0", 0, origin=HTTPS, behind_proxy=True)


def test_on_this_machine_it_starts_without_an_account_and_says_so(tmp_path, make_collection):
    make_collection(f"sqlite:///{tmp_path}/empty.db")
    with running(f"sqlite:///{tmp_path}/empty.db") as (process, port, _):
        assert get(port, "/healthz").status == 200
        told = "open the link that init printed, or make another: python -m reward.collect invite --role lead"
        assert process.stdout.readline() == f"Nobody has an account yet; {told}\n"


def test_without_an_account_it_names_a_folder_that_is_not_the_usual_one(tmp_path, make_collection):
    make_collection(f"sqlite:///{tmp_path}/collect.db")
    with running(f"sqlite:///{tmp_path}/collect.db", folder=str(tmp_path)) as (process, _, _):
        assert process.stdout.readline().endswith(f" --role lead --dir {tmp_path}\n")


@pytest.mark.parametrize("origin", [None, HTTPS])
def test_it_records_where_people_reach_it_for_the_links_that_others_make(tmp_path, make_collection, origin):
    database = make_collection(f"sqlite:///{tmp_path}/collect.db")
    with running(f"sqlite:///{tmp_path}/collect.db", origin=origin) as (process, _, _):
        expected = origin or f"http://127.0.0.1:{listening_port(process.pid)}"
        with database.read() as session:
            assert home.origin_of(session) == expected


def test_with_no_account_yet_it_says_where_a_link_that_init_printed_leads_now(tmp_path, make_collection):
    make_collection(f"sqlite:///{tmp_path}/collect.db")
    with running(f"sqlite:///{tmp_path}/collect.db") as (process, port, _):
        assert process.stdout.readline().startswith("Nobody has an account yet; open the link that init printed")
        told = f"(with http://127.0.0.1:{port} in place of http://127.0.0.1:8000 where a link begins with that)"
        assert process.stdout.readline().strip() == told


@pytest.mark.parametrize("options", [{"origin": HTTPS}, {"origin": HTTPS, "behind_proxy": True}])
def test_an_origin_without_certificate_or_proxy_is_warned_of(url, options):
    with running(url, **options) as (process, _, _):
        assert get(listening_port(process.pid), "/healthz").status == 200  # so that all was said before
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert ("warning: --origin without --tls-cert" in rest) == ("behind_proxy" not in options)


def test_half_sent_sign_ins_take_no_turn_from_those_that_are_whole(url):
    head = "POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    form = f"handle=alice&password={PASSWORD.replace(' ', '+')}"
    half = f"{head}Sec-Fetch-Site: same-origin\r\nContent-Length: {len(form)}\r\n\r\n{form[:-1]}".encode()
    with running(url) as (_, port, _), ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)]
        for one in waiting:
            one.sendall(half)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as whole:
            whole.sendall(half + form[-1:].encode())  # the half-sent ones are cut off after 30 seconds
            assert whole.recv(12) == b"HTTP/1.1 303"


def test_a_port_in_use_is_one_clear_line(url):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as refused:
            serve(url, port=port)
    expected = f"cannot listen on 127.0.0.1, port {port} (Address already in use); choose another with --port"
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    "host, port, words", [("127.0.0.1", 70000, "must be 0 to 65535"), ("192.0.2.1", 0, "cannot listen")]
)
def test_an_address_that_is_none_is_refused(url, host, port, words):
    with pytest.raises(UserError, match=words):
        serve(url, host, port, origin=HTTPS, behind_proxy=True)


def test_a_database_without_a_collection_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no collection"):
        serve(f"sqlite:///{tmp_path}/none.db")


# With TLS


def test_with_a_certificate_it_speaks_https_under_its_name(url, certificate):
    cert, key = certificate
    with running(url, host="0.0.0.0", origin=HTTPS, tls_cert=cert, tls_key=key) as (process, port, line):
        assert port is None and line == f"Collecting rankings at {HTTPS} (Ctrl-C stops)\n"
        connection = https(listening_port(process.pid), cert)
        form = f"handle=alice&password={PASSWORD.replace(' ', '+')}"
        headers = {"Host": "rank.example.org", "Origin": HTTPS, "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/sign-in", form, headers)
        answer = connection.getresponse()
        assert answer.status == 303 and answer.getheader("set-cookie").startswith("__Host-session-")
        assert answer.getheader("set-cookie").endswith("; Secure")
        assert answer.getheader("strict-transport-security") == "max-age=31536000"


def https(port: int, cert: str) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False  # the name is that of the certificate, the address is not
    return http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=START_SECONDS)


def listening_port(pid: int) -> int:
    """Of a process's one listening socket, from /proc."""
    sockets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    (port,) = {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
    return port


# How it stops


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_when_stopped_it_answers_what_is_under_way_and_exits_with_0(url, sign):
    with running(url) as (process, port, _):
        body = f"handle=alice&password={PASSWORD.replace(' ', '+')}".encode()
        with socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS) as half_sent:
            half_sent.sendall(head(port, len(body)) + body[:10])
            wait_until_read(half_sent, port)
            process.send_signal(sign)
            wait_until_refused(port)
            half_sent.sendall(body[10:])
            assert half_sent.recv(65536).startswith(b"HTTP/1.1 303")
        assert process.wait(START_SECONDS) == 0
        assert "Traceback" not in process.stdout.read()


def head(port: int, length: int) -> bytes:
    lines = ["POST /sign-in HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Origin: http://127.0.0.1:{port}"]
    lines += ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


def wait_until_read(half_sent: socket.socket, port: int) -> None:
    """A server that answers another request has read what came before it."""
    for _ in range(3):
        assert get(port, "/healthz").status == 200


def wait_until_refused(port: int) -> None:
    """Until the server takes no new connections."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS).close()
        except ConnectionError:
            return


def test_the_server_starts_without_torch():
    """It runs where only the extra `collect` is used, and starts in a second or two."""
    heavy = "sorted({'torch', 'transformers', 'trl'} & set(sys.modules))"
    code = f"import sys, reward.collect.web.server; sys.exit({heavy} or 0)"
    assert subprocess.run([sys.executable, "-c", code], timeout=START_SECONDS).returncode == 0

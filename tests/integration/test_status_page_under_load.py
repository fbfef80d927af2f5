"""The status page's port when clients misuse it: health checks go on, the process stays small."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.integration

CONNECTIONS = 2000
DESCRIPTORS = 1024
"""Limit of open files of the server's process: the usual soft limit."""
PATIENCE = 5.0
"""Seconds for one health check; Kubernetes gives 10 in our deployment."""

SERVER = f"""
import logging, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS},) * 2)
logging.basicConfig()
from adapters.status_page.app import build_app
from adapters.status_page.server import StatusServer
from tests.services.status_scenes import training
app = build_app(training().sources(), host="127.0.0.1", token=None)
with StatusServer(app, "127.0.0.1", 0, stall_seconds=float(sys.argv[1])) as url:
    print(url, flush=True)
    while sys.stdin.readline():  # a line: hold every descriptor; the next one: free them
        held = []
        try:
            while True:
                held.append(open(os.devnull))
        except OSError:
            print("full", flush=True)
        sys.stdin.readline()
        del held
"""


@dataclass(frozen=True)
class Server:
    """A process that serves the page and nothing else."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def send_line(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def connect(self) -> socket.socket:
        where = urlsplit(self.url)
        return socket.create_connection((where.hostname, where.port), timeout=30)

    def check_health(self) -> float:
        """Seconds that a successful health check takes."""
        began = time.monotonic()
        with urlopen(f"{self.url}/health/live", timeout=PATIENCE) as response:
            assert response.status == 200
        return time.monotonic() - began


@contextmanager
def serving(folder: Path, stall_seconds: float = 60.0) -> Iterator[Server]:
    """A server whose requests may stall for a minute by default."""
    log = folder / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(stall_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        yield Server(process.stdout.readline().strip(), process, log)
    finally:
        process.kill()
        process.communicate()


def is_closed(client: socket.socket) -> bool:
    """Whether the server ends the connection before the client's own timeout."""
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def many_sockets() -> Iterator[None]:
    """Lets this process hold its ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 500
    if hard not in (resource.RLIM_INFINITY,) and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_sockets")
def test_two_thousand_silent_connections_stop_no_health_check(server: Server) -> None:
    with ExitStack() as held:
        for number in range(CONNECTIONS):
            held.enter_context(server.connect())
            if number % 100 == 99:
                server.check_health()
                assert server.descriptors() < DESCRIPTORS / 2
        assert server.check_health() < PATIENCE
    assert server.log.read_text() == ""


def test_slow_clients_stop_no_health_check(
    server: Server,
) -> None:
    ended = threading.Event()
    with ExitStack() as held:
        clients = [held.enter_context(server.connect()) for _ in range(200)]
        for client in clients:
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        held.callback(ended.set)

        def send_slowly() -> None:
            while not ended.wait(0.2):
                for client in clients:
                    try:
                        client.sendall(b"x")
                    except OSError:
                        continue  # closed by the server

        threading.Thread(target=send_slowly, daemon=True).start()
        for client in (held.enter_context(server.connect()) for _ in range(200)):
            client.sendall(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        for _ in range(10):
            server.check_health()
            time.sleep(0.1)
    assert server.log.read_text() == ""


def test_garbage_requests_get_a_response_and_are_not_logged(server: Server) -> None:
    for _ in range(300):
        with server.connect() as client:
            client.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert server.log.read_text() == ""


def test_a_connection_without_a_request_in_time_is_closed(tmp_path: Path) -> None:
    with serving(tmp_path, stall_seconds=1.0) as server:
        silent, slow = server.connect(), server.connect()
        used = HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
        with silent, slow, closing(used):
            for byte in b"GET / HTTP":
                slow.sendall(bytes([byte]))
                time.sleep(0.08)
            used.request("GET", "/health/live")
            assert used.getresponse().read() == b"live\n"
            for client in (silent, slow):
                client.settimeout(PATIENCE)
                assert is_closed(client)
            used.request("GET", "/health/live")
            assert used.getresponse().read() == b"live\n", "each request has its own time"


def test_a_process_without_free_descriptors_logs_it_once_and_recovers(server: Server) -> None:
    server.check_health()
    server.send_line()
    assert server.process.stdout is not None
    assert server.process.stdout.readline() == "full\n"
    with ExitStack() as held:
        for _ in range(50):
            held.enter_context(server.connect())
        time.sleep(2.5)  # asyncio tries again every second
        server.send_line()
        deadline = time.monotonic() + 30
        while True:
            try:
                server.check_health()
                break
            except OSError:
                assert time.monotonic() < deadline
    (line,) = server.log.read_text().splitlines()
    assert "Too many open files" in line

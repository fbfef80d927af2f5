"""Every call to a store that sends or reads single bytes ends at its deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from adapters.common import deadline
from adapters.gcs.options import GcsOptions
from adapters.gcs.store import GcsBlobStore
from adapters.s3.options import S3Options
from adapters.s3.store import S3BlobStore
from application.ports import BlobStore, BlobUnavailable
from domain.location import Bucket, Location

pytestmark = pytest.mark.integration

HEADERS = b"HTTP/1.1 200 OK\r\nX-Slow: "
BODY = b'HTTP/1.1 200 OK\r\nETag: "tag"\r\nContent-Length: 100000\r\n\r\n'
LARGE = bytes(4 * 1024**2)
"""Number of bytes that exceeds the buffers of both sockets."""


@contextmanager
def slow_server(response: bytes | None) -> Iterator[str]:
    """A server that sends this response and then single bytes, slowly; its URL.

    Args:
        answer: None for a server that reads the request byte by byte.
    """
    closing = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            if response is not None:
                client.recv(64 * 1024)
                client.sendall(response)
            while not closing.wait(0.05):
                if response is None:
                    client.recv(1)
                else:
                    client.sendall(b" ")

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)


def s3(url: str) -> BlobStore:
    options = S3Options(
        endpoint_url=url,
        region="us-east-1",
        access_key_id="key",
        secret_access_key="secret",
        blob_seconds=0.5,
        max_attempts=1,
    )
    return S3BlobStore(options, readable=(), writable=["bucket"], sleep=time.sleep)


def gcs(url: str) -> BlobStore:
    options = GcsOptions(emulator_url=url, blob_seconds=0.5, retry_seconds=0.5)
    return GcsBlobStore(options, readable=(), writable=["bucket"], sleep=time.sleep)


@pytest.mark.parametrize("make", [s3, gcs])
@pytest.mark.parametrize("response", [HEADERS, BODY], ids=["headers", "body"])
def test_a_slowly_sent_response_ends_at_the_deadline(
    make: Callable[[str], BlobStore], response: bytes
) -> None:
    with slow_server(response) as url:
        store, at = make(url), Location("bucket", "a", "gs" if make is gcs else "s3")
        for call in (lambda: store.get(at), lambda: store.list(Bucket("bucket", at.scheme), "a")):
            began = time.monotonic()
            with pytest.raises(BlobUnavailable, match=r"within \d+ s"):
                call()
            assert time.monotonic() - began < 10


@pytest.mark.parametrize("make", [s3, gcs])
def test_a_slowly_read_upload_ends_at_the_deadline(
    make: Callable[[str], BlobStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "MIN_BYTES_PER_SECOND", 10 * len(LARGE))
    with slow_server(None) as url:
        store, at = make(url), Location("bucket", "a", "gs" if make is gcs else "s3")
        began = time.monotonic()
        with pytest.raises(BlobUnavailable, match=r"within \d+ s"):
            store.put(at, LARGE)
        assert time.monotonic() - began < 10

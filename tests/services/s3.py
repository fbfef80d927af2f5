"""An S3 server over HTTP in its own process: moto's, serving one request at a time.

Moto checks a condition and then writes without a lock, so two conditional writes may both succeed;
and it ignores ``If-Match`` at the end of a multipart upload. This module corrects both.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.services.child import end_with_parent, serving

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY, SECRET_KEY = "AKIDTESTS0000000EXAMPLE", "s3cr3t/of+the+tests/EXAMPLEKEY0000000000"
REGION = "us-east-1"

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

_GONE_BY = b"<Error><Code>PreconditionFailed</Code><Message>If-Match</Message></Error>"


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str

    def new_bucket(self) -> str:
        """An empty bucket of the test's own."""
        name = f"bucket-{uuid.uuid4().hex}"
        self.create_bucket(name)
        return name

    def client(self) -> S3Client:
        """A client of the tests' own, shared by all threads: making one takes a while."""
        return _client(self.url)

    def create_bucket(self, name: str) -> None:
        """Create a bucket."""
        self.client().create_bucket(Bucket=name)


@cache
def _client(url: str) -> S3Client:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


@contextmanager
def running_s3(*buckets: str) -> Iterator[Server]:
    """A server on a free port with these buckets, or the one that ``TEST_S3_URL`` names.

    That one must accept our keys: tests/brokers/radosgw.sh starts such a server.
    """
    other = os.environ.get("TEST_S3_URL")
    with nullcontext(other) if other else serving("tests.services.s3") as url:
        service = Server(url)
        for bucket in buckets:
            service.create_bucket(bucket)
        yield service


class OneAtATime:
    """Serves requests one after another; each is read completely first."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._turn = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self._turn:
            if _completes_on_stale_state(environ):
                start_response("412 Precondition Failed", [("Content-Type", "application/xml")])
                return [_GONE_BY]
            response = self._application(environ, start_response)
            return [b"".join(response)]


def _completes_on_stale_state(environ: dict[str, Any]) -> bool:
    expected = environ.get("HTTP_IF_MATCH")
    if expected is None or environ["REQUEST_METHOD"] != "POST":
        return False
    if "uploadId" not in parse_qs(environ["QUERY_STRING"]):
        return False
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    bucket, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
    found = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_object(bucket, key)
    return found is None or found.etag.strip('"') != expected.strip('"')


def main() -> None:
    """Serve on a free port, print the URL, end with the parent."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(
        "127.0.0.1",
        0,
        OneAtATime(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=MotoRequestHandler,
    )
    end_with_parent()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 - for the parent
    server.serve_forever()


if __name__ == "__main__":
    main()

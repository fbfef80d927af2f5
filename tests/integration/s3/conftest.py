"""One S3 server for all tests of the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from adapters.s3.options import MIB, S3Options
from tests.integration.s3.world import TOKEN, Store, make
from tests.services.http_proxy import FaultyProxy
from tests.services.s3 import ACCESS_KEY, REGION, SECRET_KEY, Server, running_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture(scope="package")
def service() -> Iterator[Server]:
    with running_s3("images") as running:
        yield running


@pytest.fixture
def options(proxy: FaultyProxy) -> S3Options:
    return S3Options(
        endpoint_url=proxy.url,
        region=REGION,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        session_token=TOKEN,
        connect_timeout=2,
        read_timeout=1,
        max_attempts=2,
        multipart_threshold=6 * MIB,
        part_size=5 * MIB,
    )


@pytest.fixture
def store(options: S3Options, bucket: str) -> Store:
    return make(options, bucket, "images")


@pytest.fixture(scope="package")
def direct(service: Server) -> S3Client:
    """A client of the test's own that bypasses adapter and proxy."""
    return service.client()

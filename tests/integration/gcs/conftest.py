"""One emulator and one proxy for all tests of the adapter; a bucket for each test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from adapters.gcs.options import GcsOptions
from adapters.gcs.store import GcsBlobStore
from domain.location import Location
from tests.services.gcs import Emulator, running_gcs
from tests.services.http_proxy import FaultyProxy, running_proxy


@dataclass(frozen=True)
class Store:
    """The store under test, through the proxy."""

    blobs: GcsBlobStore
    bucket: str

    def at(self, key: str) -> Location:
        return Location(self.bucket, key, "gs")


@pytest.fixture(scope="package")
def emulator() -> Iterator[Emulator]:
    with running_gcs() as running:
        yield running


@pytest.fixture(scope="package")
def started_proxy(emulator: Emulator) -> Iterator[FaultyProxy]:
    with running_proxy(emulator.url) as running:
        yield running


@pytest.fixture
def proxy(started_proxy: FaultyProxy) -> FaultyProxy:
    started_proxy.clear()
    return started_proxy


@pytest.fixture
def options(proxy: FaultyProxy) -> GcsOptions:
    return GcsOptions(emulator_url=proxy.url, connect_timeout=2, read_timeout=1, retry_seconds=1.5)


@pytest.fixture
def store(options: GcsOptions, emulator: Emulator) -> Store:
    bucket = emulator.new_bucket()
    blobs = GcsBlobStore(
        options, readable=["images", "no-such-bucket"], writable=[bucket], sleep=time.sleep
    )
    return Store(blobs, bucket)

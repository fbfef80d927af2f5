"""One emulator for all tests of the adapter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from adapters.gcs.options import GcsOptions
from adapters.gcs.store import GcsBlobStore
from domain.location import Location
from tests.services.gcs import Emulator, running_gcs
from tests.services.http_proxy import FaultyProxy


@dataclass(frozen=True)
class Store:
    """The store under test, through the proxy."""

    blobs: GcsBlobStore
    bucket: str

    def at(self, key: str) -> Location:
        return Location(self.bucket, key, "gs")


@pytest.fixture(scope="package")
def service() -> Iterator[Emulator]:
    with running_gcs() as running:
        yield running


@pytest.fixture
def options(proxy: FaultyProxy) -> GcsOptions:
    return GcsOptions(emulator_url=proxy.url, connect_timeout=2, read_timeout=1, retry_seconds=1.5)


@pytest.fixture
def store(options: GcsOptions, bucket: str) -> Store:
    blobs = GcsBlobStore(
        options, readable=["images", "no-such-bucket"], writable=[bucket], sleep=time.sleep
    )
    return Store(blobs, bucket)

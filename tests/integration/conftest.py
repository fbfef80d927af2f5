"""A store and a fault-injecting proxy for each folder with a ``service`` fixture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from tests.services.http_proxy import FaultyProxy, running_proxy


class StoreService(Protocol):
    """A running store."""

    @property
    def url(self) -> str: ...

    def new_bucket(self) -> str: ...


@pytest.fixture(scope="package")
def started_proxy(service: StoreService) -> Iterator[FaultyProxy]:
    with running_proxy(service.url) as running:
        yield running


@pytest.fixture
def proxy(started_proxy: FaultyProxy) -> FaultyProxy:
    started_proxy.clear()
    return started_proxy


@pytest.fixture
def bucket(service: StoreService) -> str:
    """A bucket of the test's own."""
    return service.new_bucket()

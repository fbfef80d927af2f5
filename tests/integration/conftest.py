"""A store and a fault-injecting proxy for each folder with a ``service`` fixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import pytest

from entrypoints.train import in_background
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


@pytest.fixture
def awaited_loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait at the end for base models that the test's commands load in the background: a command
    that is rejected leaves the thread behind, and concurrent loads disturb each other."""
    loads: list[Callable[[], Any]] = []

    def recorded(call: Callable[[], Any]) -> Callable[[], Any]:
        loads.append(in_background(call))
        return loads[-1]

    monkeypatch.setattr("entrypoints.train.in_background", recorded)
    yield
    for load in loads:
        with suppress(Exception):
            load()

"""One RabbitMQ node for the tests of this folder that restart or kill it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.deployment import BROKER_FLAGS
from tests.services.broker import Broker, own_broker


@pytest.fixture(scope="session")
def own_node() -> Iterator[Broker]:
    with own_broker(flags=BROKER_FLAGS) as made:
        yield made


@pytest.fixture
def restartable_broker(own_node: Broker) -> Broker:
    """The node, running even if an earlier test failed before it started the node again."""
    if not own_node.is_running:
        own_node.start()
    return own_node

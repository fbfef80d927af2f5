"""One node for all tests of this folder: a node takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.broker.node import Node, running_node
from tests.services.broker import Broker


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("certificates")) as running:
        yield running


@pytest.fixture(scope="package")
def broker(node: Node) -> Broker:
    return node.broker

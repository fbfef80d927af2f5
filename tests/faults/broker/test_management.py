"""Data for KEDA and Prometheus from a broker's management and metrics plugins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.files import ROOT, SETTINGS
from tests.deploy.test_monitoring import BROKERS_OWN
from tests.faults.broker.node import Node
from tests.services.broker import Broker
from tests.services.queues import raw_channel
from tests.services.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.faults]

QUEUE: str = SETTINGS["RABBITMQ_QUEUE"].default


@pytest.fixture(scope="module", autouse=True)
def _waiting_task(broker: Broker) -> Iterator[None]:
    with raw_channel(broker.port) as channel:
        channel.queue_declare(QUEUE, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", QUEUE, b"{}")
    yield
    with raw_channel(broker.port) as channel:
        channel.queue_delete(QUEUE)


def request_of_keda(node: Node) -> requests.Response:
    """KEDA's request for a queue's length."""
    url = f"http://127.0.0.1:{node.management}/api/queues/%2F/{QUEUE}"
    return requests.get(url, auth=("monitor", "PASSWORD"), timeout=30)


def test_kedas_user_needs_exactly_the_documented_permissions(node: Node) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for command in (
        ("add_user", "monitor", "PASSWORD"),
        ("set_user_tags", "monitor", "monitoring"),
        ("set_permissions", "-p", "/", "monitor", "", "", ""),
    ):
        assert f"rabbitmqctl {' '.join(word or chr(39) * 2 for word in command)}" in page
        assert not request_of_keda(node).ok
        node.broker.control(*command)
    eventually(lambda: request_of_keda(node).json().get("messages") == 1)


def test_the_broker_exposes_the_metrics_of_the_alerts(node: Node) -> None:
    def exposed() -> dict[str, set[str]]:
        url = f"http://127.0.0.1:{node.metrics}/metrics/per-object"
        text = requests.get(url, timeout=30).text
        return {
            sample.name: set(sample.labels)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("queue") == QUEUE
        }

    eventually(lambda: BROKERS_OWN.keys() <= exposed().keys())
    for metric, labels in BROKERS_OWN.items():
        assert exposed()[metric] == labels - {"job", "instance"}

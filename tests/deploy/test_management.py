"""Data for KEDA and Prometheus from a broker's management and metrics plugins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.files import ROOT, SETTINGS
from tests.deploy.test_monitoring import BROKERS_OWN
from tests.services.broker import Broker, own_broker
from tests.services.ports import free_ports
from tests.services.queues import raw_channel
from tests.services.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.faults]

QUEUE: str = SETTINGS["RABBITMQ_QUEUE"].default
MANAGEMENT, METRICS = free_ports(2)
CONFIGURATION = f"""
    management.tcp.ip = 127.0.0.1
    management.tcp.port = {MANAGEMENT}
    prometheus.tcp.ip = 127.0.0.1
    prometheus.tcp.port = {METRICS}
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    plugins = ("rabbitmq_management", "rabbitmq_prometheus")
    with own_broker(configuration=CONFIGURATION, plugins=plugins) as broker:
        with raw_channel(broker.port) as channel:
            channel.queue_declare(QUEUE, durable=True)
            channel.confirm_delivery()
            channel.basic_publish("", QUEUE, b"{}")
        yield broker


def asked_by_keda() -> requests.Response:
    """KEDA's request for a queue's length."""
    url = f"http://127.0.0.1:{MANAGEMENT}/api/queues/%2F/{QUEUE}"
    return requests.get(url, auth=("monitor", "PASSWORD"), timeout=30)


def test_kedas_user_needs_exactly_the_documented_permissions(
    broker: Broker,
) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for command in (
        ("add_user", "monitor", "PASSWORD"),
        ("set_user_tags", "monitor", "monitoring"),
        ("set_permissions", "-p", "/", "monitor", "", "", ""),
    ):
        assert f"rabbitmqctl {' '.join(word or chr(39) * 2 for word in command)}" in page
        assert not asked_by_keda().ok
        broker.control(*command)
    eventually(lambda: asked_by_keda().json().get("messages") == 1)


def test_the_broker_exposes_the_metrics_of_the_alerts(broker: Broker) -> None:
    def exposed() -> dict[str, set[str]]:
        url = f"http://127.0.0.1:{METRICS}/metrics/per-object"
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

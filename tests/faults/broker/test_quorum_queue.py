"""A virtual host whose default queue type makes the backend's plain queue a quorum queue."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import pika
import pytest

from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from tests.deploy.files import ROOT
from tests.faults.broker.node import DELIVERY_LIMIT, QUORUM
from tests.services.broker import Broker
from tests.services.queues import fetch, opened, raw_channel, receive
from tests.services.tcp_proxy import Proxy
from tests.services.waiting import eventually

pytestmark = pytest.mark.faults

TIMES = 3 * DELIVERY_LIMIT


@pytest.fixture
def options(broker: Broker) -> RabbitOptions:
    return RabbitOptions(
        port=broker.port,
        vhost=QUORUM,
        queue=f"test.{uuid.uuid4().hex[:8]}",
        retry_delays=(0.2, 600.0),
        first_reconnect_delay=0.02,
        max_reconnect_delay=0.1,
    )


def begun(queue: RabbitQueue) -> None:
    """Publish a task and retry it once; the count of retries must survive."""
    queue.publish(b"{}")
    queue.retry_later(receive(queue), 0.2, "busy")


def left(queue: RabbitQueue) -> list[tuple[bytes, int]]:
    """Acknowledge all messages of the main queue; return each one's body and number of retries."""
    found = []
    while (delivery := queue.receive(1.0)) is not None:
        found.append((delivery.body, delivery.retries))
        queue.acknowledge(delivery)
    return found


def test_a_task_survives_more_requeues_than_the_delivery_limit(options: RabbitOptions) -> None:
    with opened(options) as queue:
        begun(queue)
        for _ in range(TIMES):
            queue.requeue(receive(queue))
        assert left(queue) == [(b"{}", 1)]


def test_a_task_survives_more_lost_connections_than_the_delivery_limit(
    options: RabbitOptions,
) -> None:
    with (
        Proxy(options.effective_port) as proxy,
        opened(replace(options, port=proxy.port)) as queue,
    ):
        begun(queue)
        for _ in range(TIMES):
            receive(queue)
            proxy.cut()
        assert left(queue) == [(b"{}", 1)]


def test_after_one_lost_connection_a_task_keeps_its_place(options: RabbitOptions) -> None:
    with opened(options) as queue:
        for body in (b"1", b"2", b"3"):
            queue.publish(body)
        queue.requeue(receive(queue))
        assert [body for body, _ in left(queue)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("vhost", ["/", QUORUM])
def test_a_publishers_delivery_count_header_stops_no_worker(
    options: RabbitOptions, vhost: str
) -> None:
    with (
        opened(replace(options, vhost=vhost)) as queue,
        raw_channel(options.effective_port, vhost) as raw,
    ):
        queue.depths()
        headers = {"x-delivery-count": 77, "trace": "x"}
        raw.basic_publish("", options.queue, b"{}", pika.BasicProperties(headers=headers))
        queue.dead_letter(receive(queue), "wrong")
        properties, _ = fetch(raw, f"{options.queue}.dead")
    assert properties.headers is not None
    assert properties.headers["trace"] == "x"
    assert "x-delivery-count" not in properties.headers


def test_the_documented_policy_keeps_messages_another_program_requeues_too_often(
    broker: Broker, options: RabbitOptions
) -> None:
    keys = {
        "delivery-limit": 1,
        "dead-letter-exchange": "",
        "dead-letter-routing-key": f"{options.queue}.dead",
    }
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    assert '{"dead-letter-exchange": "", "dead-letter-routing-key": "model_training.dead"}' in page
    policy = ("-p", QUORUM, "kept", f"^{options.queue}$", json.dumps(keys))
    broker.control("set_policy", *policy, "--priority", "1", "--apply-to", "queues")
    with opened(options) as queue, raw_channel(options.effective_port, QUORUM) as raw:
        queue.publish(b"{}")

        def is_dead() -> bool:
            method, _, _ = raw.basic_get(options.queue)
            if method is not None:
                raw.basic_reject(method.delivery_tag, requeue=True)
            return queue.depths()[f"{options.queue}.dead"] == 1

        eventually(is_dead, within=20.0)


def test_the_check_consumes_from_a_queue_of_the_same_kind(
    broker: Broker, options: RabbitOptions
) -> None:
    for vhost, quorum in (("/", False), (QUORUM, True)):
        with opened(replace(options, vhost=vhost)) as queue:
            facts = queue.check()
            queues = list(broker.control("list_queues", "-p", vhost, "name").split())
        assert facts.version == broker.control("version").strip()
        assert facts.quorum is quorum
        assert not [name for name in queues if ".check." in name]

"""RabbitMQ that is disconnected, unresponsive, or unreachable."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from adapters.rabbitmq.options import RabbitOptions, TlsOptions
from adapters.rabbitmq.queue import RabbitQueue
from application.ports import Delivery, DeliveryLost, QueueUnavailable
from tests.services.queues import PORT, opened, publish_as_the_backend, receive
from tests.services.tcp_proxy import Proxy
from tests.services.waiting import eventually

pytestmark = pytest.mark.integration

SETTLE: dict[str, Callable[[RabbitQueue, Delivery], None]] = {
    "acknowledge": lambda queue, delivery: queue.acknowledge(delivery),
    "retry_later": lambda queue, delivery: queue.retry_later(delivery, 0.1, "reason"),
    "dead_letter": lambda queue, delivery: queue.dead_letter(delivery, "reason"),
    "requeue": lambda queue, delivery: queue.requeue(delivery),
}
every_way = pytest.mark.parametrize("settle", SETTLE.values(), ids=SETTLE.keys())


# --- Long work and cut wires -------------------------------------------------------------


def test_heartbeats_are_served_while_the_worker_is_busy(
    options: RabbitOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parameters = pika.ConnectionParameters("127.0.0.1", PORT, heartbeat=2)
    idle = pika.BlockingConnection(parameters)
    with opened(replace(options, heartbeat=2)) as queue:
        queue.publish(b"{}")
        delivery = receive(queue)
        time.sleep(7.0)
        queue.acknowledge(delivery)
        assert queue.receive(0.2) is None
    assert caplog.text.count("connected to RabbitMQ") == 1
    # The broker closes a connection without heartbeats within that time.
    with pytest.raises(AMQPError):
        idle.channel()


def test_a_lost_connection_is_restored_and_logged_once(
    options: RabbitOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = replace(options, first_reconnect_delay=0.05, max_reconnect_delay=0.1)
    with Proxy(PORT) as proxy, opened(replace(options, port=proxy.port)) as queue:
        queue.publish(b"{}")
        delivery = receive(queue)
        proxy.unplug()
        with pytest.raises(QueueUnavailable, match=f"127.0.0.1:{proxy.port}"):
            queue.receive(1.5)
        with pytest.raises(DeliveryLost):
            queue.acknowledge(delivery)
        with pytest.raises(QueueUnavailable):
            queue.publish(b"{}")
        proxy.plug_in()
        again = receive(queue)
        assert (again.body, again.redelivered) == (b"{}", True)
        queue.acknowledge(again)
    ours = [r for r in caplog.records if r.name.startswith(("adapters", "pika"))]
    logged = [(record.levelno, record.getMessage()) for record in ours]
    assert [level for level, _ in logged].count(logging.INFO) == 2
    warnings = [text for level, text in logged if level == logging.WARNING]
    assert len(warnings) == len(set(warnings)) <= 3
    assert not [text for level, text in logged if level > logging.WARNING]


@every_way
def test_a_settlement_lost_with_a_silent_broker_leads_to_redelivery(
    options: RabbitOptions, settle: Callable[[RabbitQueue, Delivery], None]
) -> None:
    short_timeout = replace(options, response_timeout=1.0, heartbeat=2)
    with Proxy(PORT) as proxy, opened(replace(short_timeout, port=proxy.port)) as queue:
        queue.publish(b"{}")
        delivery = receive(queue)
        proxy.hold()
        with pytest.raises(QueueUnavailable, match="no response in 1 s"):
            settle(queue, delivery)
        proxy.cut()
        proxy.release()
        again = receive(queue)
        assert (again.body, again.retries, again.redelivered) == (b"{}", 0, True)
        queue.acknowledge(again)


def test_a_cancelled_consumer_restarts_and_its_deliveries_are_lost(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.publish(b'{"n": 1}')
    delivery = receive(queue)
    raw.queue_delete(options.queue)
    eventually(lambda: _is_lost(queue, delivery))
    publish_as_the_backend(raw, options.queue, b'{"n": 2}')
    assert receive(queue).body == b'{"n": 2}'


def _is_lost(queue: RabbitQueue, delivery: Delivery) -> bool:
    try:
        queue.requeue(delivery)
    except DeliveryLost:
        return True
    return False


def test_a_working_thread_is_not_disturbed_by_the_loss_of_its_delivery(
    options: RabbitOptions,
) -> None:
    with Proxy(PORT) as proxy, opened(replace(options, port=proxy.port)) as queue:
        queue.publish(b"{}")
        delivery = receive(queue)
        done = threading.Event()
        worker = threading.Timer(1.0, done.set)
        worker.start()
        proxy.cut()
        again = receive(queue)
        assert not done.is_set()
        worker.join()
        with pytest.raises(DeliveryLost):
            queue.acknowledge(delivery)
        queue.acknowledge(again)
        assert queue.depths()[options.queue] == 0


# --- Connection problems ---

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "password": ({"password": "s3cret-x"}, "rejects user 'guest': check user name and password"),
    "vhost": ({"vhost": "nowhere"}, "no virtual host 'nowhere': create it, or correct its name"),
    "port": ({"port": 1}, "the connection was refused: start the broker, or check host and port"),
    "host": ({"host": "nowhere.invalid"}, "name was not found .*: check the host"),
    "TLS": ({"tls": TlsOptions(), "port": PORT}, "no TLS connection .*check that this port uses"),
    "CA file": ({"tls": TlsOptions(certificate=Path("none.pem"))}, "No such file"),
}


@pytest.mark.parametrize(("wrong", "remedy"), WRONG.values(), ids=WRONG.keys())
def test_each_connection_problem_is_logged_once_with_its_remedy(
    options: RabbitOptions,
    wrong: dict[str, Any],
    remedy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    given = {"password": "s3cret-x", **wrong} if "password" in wrong else wrong
    options = replace(options, first_reconnect_delay=0.02, max_reconnect_delay=0.05, **given)
    with opened(options) as queue:
        for _ in range(3):
            with pytest.raises(QueueUnavailable, match=remedy) as raised:
                queue.publish(b"{}")
            assert "s3cret" not in str(raised.value)
        with pytest.raises(QueueUnavailable, match=remedy):
            queue.receive(0.3)
    logged = [r for r in caplog.records if r.name.startswith("adapters") and r.levelno > 20]
    assert len(logged) == 1
    assert "s3cret" not in caplog.text + repr(options)

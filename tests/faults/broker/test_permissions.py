"""The permissions of docs/runpod.md let a worker do its work and no more, on a real broker."""

from __future__ import annotations

import random
import re

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from adapters.clock import SystemClock
from adapters.common.queue_ports import DeadLetterAction
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from tests.deploy.files import ROOT, SETTINGS
from tests.services.broker import Broker

pytestmark = [pytest.mark.integration, pytest.mark.faults]

QUEUE: str = SETTINGS["RABBITMQ_QUEUE"].default
PASSWORD = "a-password-of-this-test"


def _permissions() -> tuple[str, ...]:
    """Configure, write and read, as the page gives them."""
    page = (ROOT / "docs" / "runpod.md").read_text(encoding="utf-8")
    found = re.search(
        r"rabbitmqctl set_permissions -p / trainer \\\s+'(.+?)' '(.+?)' '(.+?)'", page
    )
    assert found
    return found.groups()


@pytest.fixture(scope="module", autouse=True)
def _user(broker: Broker) -> None:
    broker.control("add_user", "trainer", PASSWORD)
    broker.control("set_permissions", "-p", "/", "trainer", *_permissions())


def _connection(broker: Broker) -> pika.BlockingConnection:
    who = pika.PlainCredentials("trainer", PASSWORD)
    return pika.BlockingConnection(
        pika.ConnectionParameters("127.0.0.1", broker.port, credentials=who)
    )


def test_a_worker_may_do_every_queue_operation_it_needs(broker: Broker) -> None:
    options = RabbitOptions(
        port=broker.port,
        user="trainer",
        password=PASSWORD,
        queue=QUEUE,
        retry_delays=(0.1,),
        response_timeout=10.0,
    )
    queue = RabbitQueue(options, worker="w", clock=SystemClock(), random=random.random)
    try:
        queue.publish(b"{}")
        first = queue.receive(10.0)
        assert first is not None
        queue.retry_later(first, 0.1, "a reason")
        second = queue.receive(10.0)
        assert second is not None
        assert second.retries == 1
        queue.dead_letter(second, "another reason")
        assert [
            letter.body
            for letter in queue.process_dead_letters(lambda _letter: DeadLetterAction.PUT_BACK)
        ] == [b"{}"]
        third = queue.receive(10.0)
        assert third is not None
        queue.requeue(third)
        fourth = queue.receive(10.0)
        assert fourth is not None
        queue.acknowledge(fourth)
        assert set(queue.depths().values()) == {0}
    finally:
        queue.close()


@pytest.mark.parametrize("name", ["image_generation", f"{QUEUE}s", f"other.{QUEUE}"])
def test_a_worker_may_not_use_other_queues(broker: Broker, name: str) -> None:
    connection = _connection(broker)
    try:
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().queue_declare(name, durable=True)
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().queue_purge(name)
    finally:
        connection.close()

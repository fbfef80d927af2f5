"""A broker that the test starts, and that fails while a message is unacknowledged."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from adapters.common.queue_ports import DeadLetterAction
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from application.ports import Delivery, DeliveryLost, QueueUnavailable
from tests.services.broker import Broker
from tests.services.queues import opened, raw_channel, receive
from tests.services.waiting import eventually

pytestmark = pytest.mark.faults


@pytest.fixture
def broker(restartable_broker: Broker) -> Broker:
    return restartable_broker


@pytest.fixture
def options(broker: Broker) -> RabbitOptions:
    return RabbitOptions(
        port=broker.port,
        queue=f"test.{uuid.uuid4().hex[:8]}",
        retry_delays=(0.2, 600.0),
        first_reconnect_delay=0.1,
        max_reconnect_delay=1.0,
    )


@pytest.fixture
def queue(options: RabbitOptions) -> Iterator[RabbitQueue]:
    with opened(options) as made:
        yield made


def restart(broker: Broker) -> None:
    broker.stop()
    broker.start()


def kill_and_start(broker: Broker) -> None:
    broker.kill()
    broker.start()


def prepare(queue: RabbitQueue) -> Delivery:
    """Put a message into every queue; return the one that is held."""
    for body in (b"dead", b"waiting", b"held", b"next"):
        queue.publish(body)
    queue.dead_letter(receive(queue), "rejected", {"field": "data"})
    queue.retry_later(receive(queue), 600.0, "the store is unavailable")
    return receive(queue)


@pytest.mark.parametrize(
    "fault", [restart, Broker.close_connections], ids=["restarted", "connections closed"]
)
def test_no_message_is_lost_or_repeated_during_a_job(
    fault: Callable[[Broker], None], broker: Broker, options: RabbitOptions, queue: RabbitQueue
) -> None:
    held = prepare(queue)
    fault(broker)

    with pytest.raises(DeliveryLost):
        queue.acknowledge(held)
    again = receive(queue)
    assert (again.body, again.retries, again.redelivered) == (b"held", 0, True)
    queue.acknowledge(again)
    queue.acknowledge(receive(queue))
    (letter,) = queue.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    assert (letter.body, letter.reason) == (b"dead", "rejected")
    assert letter.details["field"] == "data"
    left = {
        options.queue: 0,
        f"{options.queue}.retry.200ms": 0,
        f"{options.queue}.retry.10m": 1,
        f"{options.queue}.dead": 1,
    }
    # A queue that has just restarted has no leader for a moment, and so no count.
    eventually(lambda: queue.depths() == left)


def test_no_message_is_lost_when_the_broker_is_killed(
    broker: Broker, options: RabbitOptions, queue: RabbitQueue
) -> None:
    # Debian's 3.10 loses a quorum queue if killed within seconds of its declaration.
    queue.depths()
    time.sleep(5.0)
    held = prepare(queue)
    kill_and_start(broker)

    with pytest.raises(DeliveryLost):
        queue.acknowledge(held)
    # A broker confirms acknowledgements before writing them to disk: some are lost.
    again: set[bytes] = set()
    while not {b"held", b"next"} <= again:
        delivery = receive(queue)
        again.add(delivery.body)
        queue.acknowledge(delivery)
    assert [
        letter.body for letter in queue.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    ] == [b"dead"]
    eventually(lambda: queue.depths()[f"{options.queue}.retry.10m"] == 1)


def test_a_delay_that_ends_without_the_main_queue_loses_no_message(
    broker: Broker, options: RabbitOptions
) -> None:
    with opened(options) as queue:
        queue.publish(b"{}")
        queue.retry_later(receive(queue), 0.2, "busy")
    with raw_channel(broker.port) as raw:
        raw.queue_delete(options.queue)
    time.sleep(0.5)
    with opened(options) as queue:
        again = receive(queue)
        assert (again.body, again.retries) == (b"{}", 1)
        queue.acknowledge(again)


def test_a_broker_with_a_memory_alarm_is_waited_for(
    broker: Broker, options: RabbitOptions
) -> None:
    with opened(replace(options, response_timeout=2.0)) as queue:
        queue.publish(b"{}")
        held = receive(queue)
        broker.control("set_vm_memory_high_watermark", "0.0000001")
        try:
            # Lost, if rabbitmqctl ends after the blocked connection's time is over.
            with pytest.raises((QueueUnavailable, DeliveryLost)):
                queue.retry_later(held, 0.1, "busy")
        finally:
            broker.control("set_vm_memory_high_watermark", "0.4")
        seen = {receive(queue).body}
        assert seen == {b"{}"}


def test_a_storm_of_faults_loses_no_message(broker: Broker, options: RabbitOptions) -> None:
    seed = 20
    bodies = {b"%d" % number for number in range(300)}
    settled: set[bytes] = set()
    finished = threading.Event()

    def work(number: int) -> None:
        choices = random.Random(f"{seed} {number}")
        with opened(options, f"worker-{number}") as queue:
            while not finished.is_set():
                try:
                    delivery = queue.receive(0.2)
                    if delivery is None:
                        continue
                    time.sleep(choices.uniform(0.0, 0.1))
                    way = choices.random()
                    if way < 0.25:
                        queue.retry_later(delivery, 0.2, "busy")
                    elif way < 0.4:
                        queue.dead_letter(delivery, "wrong")
                    elif way < 0.5:
                        queue.requeue(delivery)
                    else:
                        # The broker may have processed an acknowledgement that fails.
                        settled.add(delivery.body)
                        queue.acknowledge(delivery)
                except (DeliveryLost, QueueUnavailable):
                    continue

    with opened(options, "publisher") as publisher:
        for body in bodies:
            publisher.publish(body)
        workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        for fault in (Broker.close_connections, Broker.close_connections, kill_and_start):
            time.sleep(2.0)
            fault(broker)
        # Queues look empty while workers hold messages, and while the broker moves them.
        eventually(lambda: settled | dead(publisher) == bodies)
        finished.set()
        for worker in workers:
            worker.join()

        def is_empty() -> bool:
            """Acknowledge messages that came again. True if only dead letters are left."""
            while (delivery := publisher.receive(1.0)) is not None:
                publisher.acknowledge(delivery)
            left = publisher.depths()
            return sum(left.values()) == left[f"{options.queue}.dead"]

        eventually(is_empty)
        assert 10 <= len(dead(publisher)) < 150


def dead(queue: RabbitQueue) -> set[bytes]:
    """The dead letters; none while the broker is unavailable."""
    with suppress(QueueUnavailable):
        messages = queue.process_dead_letters(lambda _: DeadLetterAction.KEEP)
        return {letter.body for letter in messages}
    return set()

"""RabbitMQ beyond a queue's contract: a backend on the same queue, and several workers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from adapters.common.queue_ports import DeadLetterAction
from adapters.memory import ManualClock
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from application.ports import DeliveryLost, QueueUnavailable
from tests.services.queues import PORT, fetch, opened, publish_as_the_backend, receive
from tests.services.tcp_proxy import Proxy
from tests.services.waiting import eventually

pytestmark = pytest.mark.integration


def test_the_backend_may_declare_the_queue_before_us(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    publish_as_the_backend(raw, options.queue, b'{"n": 1}')
    assert receive(queue).body == b'{"n": 1}'


def test_the_backend_may_declare_the_queue_after_us(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    assert queue.receive(0.0) is None
    publish_as_the_backend(raw, options.queue, b'{"n": 1}')
    assert receive(queue).body == b'{"n": 1}'


def test_a_published_message_is_like_the_backends(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.publish(b'{"n": 1}')
    properties, body = fetch(raw, options.queue)
    assert body == b'{"n": 1}'
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert not properties.headers


def test_publishing_counting_and_processing_dead_letters_consume_no_message(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.publish(b"{}")
    queue.process_dead_letters(lambda _: DeadLetterAction.PUT_BACK)
    assert queue.depths()[options.queue] == 1
    assert raw.queue_declare(options.queue, passive=True).method.consumer_count == 0


def test_every_queue_is_durable_and_the_main_one_has_no_arguments(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    names = list(queue.depths())
    assert names == [
        options.queue,
        f"{options.queue}.retry.300ms",
        f"{options.queue}.retry.1500ms",
        f"{options.queue}.dead",
    ]
    raw.queue_declare(options.queue, durable=True)
    for name, milliseconds in ((names[1], 300), (names[2], 1500)):
        raw.queue_declare(
            name,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-overflow": "reject-publish",
                "x-dead-letter-strategy": "at-least-once",
                "x-message-ttl": milliseconds,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": options.queue,
            },
        )
    raw.queue_declare(names[3], durable=True, arguments={"x-queue-type": "classic"})


def test_a_queue_with_other_arguments_is_reported_with_a_remedy(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    raw.queue_declare(options.queue, durable=True, arguments={"x-max-length": 5})
    with pytest.raises(
        QueueUnavailable, match=r"correct the queue's name.*x-max-length"
    ) as raised:
        queue.publish(b"{}")
    assert "delete" not in str(raised.value), "tasks wait there"


def test_an_internal_queue_with_other_arguments_is_reported_with_a_remedy(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    raw.queue_declare(f"{options.queue}.dead", durable=True, arguments={"x-max-length": 5})
    with pytest.raises(QueueUnavailable, match=r"delete it when it is empty.*x-max-length"):
        queue.publish(b"{}")


def test_two_workers_share_the_messages(options: RabbitOptions, queue: RabbitQueue) -> None:
    bodies = [b'{"n": %d}' % number for number in range(20)]
    for body in bodies:
        queue.publish(body)

    def consume(worker: RabbitQueue) -> list[bytes]:
        got = []
        while (delivery := worker.receive(1.0)) is not None:
            got.append(delivery.body)
            time.sleep(0.02)
            worker.acknowledge(delivery)
        return got

    with (
        opened(options, "a") as first,
        opened(options, "b") as second,
        ThreadPoolExecutor() as pool,
    ):
        shares = list(pool.map(consume, [first, second]))
    assert sorted(shares[0] + shares[1]) == sorted(bodies)
    assert min(len(share) for share in shares) >= 5


def test_a_busy_worker_holds_no_further_message(
    options: RabbitOptions, queue: RabbitQueue
) -> None:
    queue.publish(b'{"n": 1}')
    queue.publish(b'{"n": 2}')
    first = receive(queue)
    with opened(options, "another") as another:
        assert receive(another).body == b'{"n": 2}'
        queue.acknowledge(first)


def test_a_worker_that_settles_and_then_pauses_takes_no_message(
    options: RabbitOptions, queue: RabbitQueue
) -> None:
    for body in (b"1", b"2"):
        queue.publish(body)
    queue.acknowledge(receive(queue))
    with opened(options, "another") as another:
        second = receive(another)
        assert (second.body, second.redelivered) == (b"2", False)


def test_a_message_for_an_idle_worker_that_pauses_goes_to_another(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    clock = ManualClock()
    with opened(options, "pausing", clock) as pausing:
        assert pausing.receive(0.5) is None
        publish_as_the_backend(raw, options.queue, b"1")
        declare = partial(raw.queue_declare, options.queue, passive=True)
        eventually(lambda: declare().method.message_count == 0)
        clock.advance(60.0)
        queue.acknowledge(receive(queue))
        pausing.publish(b"2")
        pausing.acknowledge(receive(pausing))


def test_a_busy_worker_that_reconnects_takes_no_message(
    options: RabbitOptions, queue: RabbitQueue
) -> None:
    with Proxy(PORT) as proxy, opened(replace(options, port=proxy.port)) as busy:
        busy.publish(b"1")
        receive(busy)
        proxy.cut()
        assert receive(queue).body == b"1"
        assert busy.depths()[options.queue] == 0, "it is connected again"
        queue.publish(b"2")
        second = receive(queue)
        assert (second.body, second.redelivered) == (b"2", False)


def test_after_a_reconnect_a_worker_takes_only_as_many_messages_as_it_has_idle_slots(
    options: RabbitOptions, queue: RabbitQueue
) -> None:
    with (
        Proxy(PORT) as proxy,
        opened(replace(options, port=proxy.port)) as worker,
        ThreadPoolExecutor() as pool,
    ):
        worker.publish(b"1")
        receive(worker)
        waiting = pool.submit(receive, worker)
        proxy.cut()
        assert waiting.result().body == b"1"
        assert worker.depths()[options.queue] == 0
        queue.publish(b"2")
        second = receive(queue)
        assert (second.body, second.redelivered) == (b"2", False)


def test_closing_requeues_unsettled_messages_at_once(
    options: RabbitOptions, queue: RabbitQueue
) -> None:
    queue.publish(b"{}")
    with opened(options, "another") as another:
        held = receive(another)
    with pytest.raises(DeliveryLost):
        another.acknowledge(held)
    with pytest.raises(QueueUnavailable, match="closed"):
        another.receive(0.0)
    assert receive(queue).redelivered

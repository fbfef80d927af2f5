"""RabbitMQ beyond a queue's contract: a backend on the same queue, and several workers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from adapters.common.queue_ports import DeadLetterAction
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from application.ports import DeliveryLost, QueueUnavailable
from tests.services.queues import fetch, opened, publish_as_the_backend, receive

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


def test_the_default_prefetch_is_one_message(options: RabbitOptions, queue: RabbitQueue) -> None:
    queue.publish(b'{"n": 1}')
    queue.publish(b'{"n": 2}')
    first = receive(queue)
    assert queue.receive(0.3) is None
    with opened(options, "another") as another:
        assert receive(another).body == b'{"n": 2}'
    queue.acknowledge(first)
    again = receive(queue)
    assert (again.body, again.redelivered) == (b'{"n": 2}', True)


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

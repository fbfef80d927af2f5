"""The delay queues in which messages wait for their retry."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from adapters.common.queue_ports import DeadLetterAction
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from application.ports import QueueUnavailable
from tests.services.queues import fetch, opened, own_options, receive

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("delay", "step"), [(0.1, "300ms"), (0.4, "1500ms"), (99.0, "1500ms")])
def test_a_delay_is_rounded_up_to_a_step_and_bounded_by_the_maximum(
    options: RabbitOptions, queue: RabbitQueue, delay: float, step: str
) -> None:
    queue.publish(b"{}")
    before = time.monotonic()
    queue.retry_later(receive(queue), delay, "busy")
    if step == "1500ms":
        assert queue.depths()[f"{options.queue}.retry.{step}"] == 1
    assert receive(queue).retries == 1
    assert time.monotonic() - before >= min(delay, 1.5)


def test_a_short_delay_does_not_wait_behind_a_long_one() -> None:
    with own_options(delays=(0.2, 60.0)) as options, opened(options) as queue:
        queue.publish(b'{"n": 1}')
        queue.publish(b'{"n": 2}')
        queue.retry_later(receive(queue), 60.0, "long")
        queue.retry_later(receive(queue), 0.2, "short")
        assert receive(queue).body == b'{"n": 2}'


def test_a_delayed_message_keeps_all_properties_except_expiry(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.depths()
    properties = BasicProperties(
        content_type="text/plain",
        correlation_id="c",
        message_id="m",
        priority=3,
        timestamp=7,
        type="t",
        app_id="a",
        delivery_mode=1,
        expiration="60000",
        user_id="guest",
        headers={
            **{"trace": "x", "n": 3, "nested": {"list": [1, True, None, "text"]}},
            # As if the broker had sent it round already, and to another queue as well.
            "x-death": [{"queue": options.queue, "reason": "expired", "count": 1}],
            "CC": [f"{options.queue}.dead"],
        },
    )
    raw.basic_publish("", options.queue, b"{}", properties)
    raw.queue_purge(f"{options.queue}.dead")
    queue.retry_later(receive(queue), 0.1, "busy")
    queue.dead_letter(receive(queue), "wrong", {"field": "data"})

    kept, body = fetch(raw, f"{options.queue}.dead")
    assert raw.queue_declare(f"{options.queue}.dead", passive=True).method.message_count == 0
    assert body == b"{}"
    assert (kept.content_type, kept.correlation_id, kept.message_id) == ("text/plain", "c", "m")
    assert (kept.priority, kept.timestamp, kept.type, kept.app_id) == (3, 7, "t", "a")
    assert (kept.delivery_mode, kept.expiration, kept.user_id) == (2, None, None)
    headers: dict[Any, Any] = dict(kept.headers or {})
    since = datetime.fromisoformat(headers.pop("trainer-since"))
    assert abs((datetime.now(UTC) - since).total_seconds()) < 60
    assert headers == {
        **{"trace": "x", "n": 3, "nested": {"list": [1, True, None, "text"]}},
        "trainer-retries": 1,
        "trainer-reason": "wrong",
        "trainer-worker": "worker-1",
        "trainer-details": {"field": "data"},
    }


def test_a_move_to_a_deleted_queue_keeps_the_message_and_redeclares_the_queue(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.publish(b"{}")
    delivery = receive(queue)
    raw.queue_delete(f"{options.queue}.dead")
    with pytest.raises(QueueUnavailable, match=r"no queue '.*\.dead'"):
        queue.dead_letter(delivery, "wrong")
    again = receive(queue)
    assert (again.body, again.redelivered) == (b"{}", True)
    queue.dead_letter(again, "wrong")
    assert queue.depths()[f"{options.queue}.dead"] == 1


def test_a_full_queue_rejects_and_the_message_is_kept(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.publish(b"{}")
    delivery = receive(queue)
    dead = f"{options.queue}.dead"
    raw.queue_delete(dead)
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    raw.queue_declare(dead, durable=True, arguments=full)
    raw.basic_publish("", dead, b"the one that has room")
    with pytest.raises(QueueUnavailable, match="whether it is full"):
        queue.dead_letter(delivery, "wrong")
    raw.queue_delete(dead)
    queue.dead_letter(receive(queue), "wrong")
    assert [
        letter.body for letter in queue.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    ] == [b"{}"]

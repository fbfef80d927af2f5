"""Unusual messages and dead letters on RabbitMQ."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from adapters.common.queue_ports import DeadLetterAction
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.queue import RabbitQueue
from application.ports import MAX_MESSAGE_BYTES, QueueUnavailable
from tests.services.queues import PORT, fetch, opened, publish_as_the_backend, receive
from tests.services.tcp_proxy import Proxy
from tests.services.waiting import eventually

pytestmark = pytest.mark.integration


def test_an_oversized_message_is_delivered_truncated_and_dead_lettered_whole(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    body = b"x" * (3 * MAX_MESSAGE_BYTES) + b"end"
    queue.publish(body)
    delivery = receive(queue)
    assert delivery.body == body[: MAX_MESSAGE_BYTES + 1]
    queue.dead_letter(delivery, "too long")
    assert fetch(raw, f"{options.queue}.dead")[1] == body


def test_a_long_reason_is_cut_to_the_frame_size(queue: RabbitQueue) -> None:
    queue.publish(b"{}")
    details = {f"{number} " + "ß" * 1000: "画" * 100_000 for number in range(300)}
    queue.dead_letter(receive(queue), "\ud800" + "Grüße " * 100_000, details)
    (letter,) = queue.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    assert letter.reason.startswith("\\ud800Grüße Grüße")
    assert 3000 < len(letter.reason.encode()) <= 4000
    assert 20 <= len(letter.details) < 30
    assert all(len(value.encode()) <= 1000 for value in letter.details.values())


class RawHeaders(BasicProperties):
    """Message properties whose header table consists of these bytes."""

    def __init__(self, table: bytes) -> None:
        super().__init__()
        self._table = table

    def encode(self) -> list[bytes]:
        return [struct.pack(">HI", self.FLAG_HEADERS, len(self._table)), self._table]


def nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01kF" + struct.pack(">I", len(table)) + table
    return table


STRANGE_HEADERS = {
    "a time beyond every calendar": b"\x01kT\xff\xff\xff\xff\xff\xff\xff\xff",
    "a nest of tables": nested(3000),
    "a text that is not UTF-8": b"\x01kS\x00\x00\x00\x02\xff\xfe",
    "a name that is not UTF-8": b"\x02\xff\xfet\x01",
    "a decimal and a float": b"\x01aD\xff\x7f\xff\xff\xff\x01bf\x3f\xc0\x00\x00",
    "a count of retries that is none": b"\x0ftrainer-retriesS\x00\x00\x00\x04many",
    "a negative count": b"\x0ftrainer-retriesI\xff\xff\xff\xff",
    "100 KB of text": b"\x01kS" + struct.pack(">I", 100_000) + b"x" * 100_000,
}


@pytest.mark.parametrize("headers", STRANGE_HEADERS.values(), ids=STRANGE_HEADERS.keys())
def test_unusual_headers_stop_no_consumer(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel, headers: bytes
) -> None:
    queue.depths()
    raw.basic_publish("", options.queue, b'{"n": 1}', RawHeaders(headers))
    publish_as_the_backend(raw, options.queue, b'{"n": 2}')
    strange = receive(queue)
    assert (strange.body, strange.retries) == (b'{"n": 1}', 0)
    queue.retry_later(strange, 0.1, "busy")
    second = receive(queue)
    assert second.body == b'{"n": 2}'
    queue.acknowledge(second)
    queue.dead_letter(receive(queue), "strange")
    assert [
        letter.body for letter in queue.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    ] == [b'{"n": 1}']


def test_a_dead_letter_of_another_program_is_shown(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.depths()
    headers = {"trainer-details": "none", "trainer-since": "yesterday", "trainer-reason": 5}
    raw.basic_publish("", f"{options.queue}.dead", b"1", BasicProperties(headers=headers))
    raw.basic_publish("", f"{options.queue}.dead", b"2")
    first, second = queue.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    assert (first.reason, first.details, first.since) == ("5", {}, None)
    assert (second.body, second.reason) == (b"2", "no reason is recorded")


# --- Dead letters -----------------------------------------------------------------------------


def test_dead_letters_arriving_during_processing_are_left_for_the_next_time(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.depths()
    for number in range(3):
        raw.basic_publish("", f"{options.queue}.dead", b"%d" % number)

    def one_more(_: object) -> DeadLetterAction:
        raw.basic_publish("", f"{options.queue}.dead", b"new")
        return DeadLetterAction.KEEP

    assert [letter.body for letter in queue.process_dead_letters(one_more)] == [b"0", b"1", b"2"]
    bodies = [
        letter.body for letter in queue.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    ]
    assert bodies == [b"0", b"1", b"2", b"new", b"new", b"new"]


def test_a_failing_callback_keeps_every_dead_letter(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.depths()
    for number in range(3):
        raw.basic_publish("", f"{options.queue}.dead", b"%d" % number)

    def fail(letter: object) -> DeadLetterAction:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.process_dead_letters(fail)
    assert queue.depths()[f"{options.queue}.dead"] == 3


def test_interrupted_processing_keeps_every_dead_letter_in_at_least_one_queue(
    options: RabbitOptions, raw: BlockingChannel
) -> None:
    with Proxy(PORT) as proxy, opened(replace(options, port=proxy.port)) as queue:
        queue.depths()
        for number in range(3):
            raw.basic_publish("", f"{options.queue}.dead", b"%d" % number)

        def cut_at_the_second(letter: Any) -> DeadLetterAction:
            if letter.body == b"1":
                proxy.cut()
            return DeadLetterAction.PUT_BACK

        with pytest.raises(QueueUnavailable, match="repeat the command"):
            queue.process_dead_letters(cut_at_the_second)
    dead: set[bytes] = set()

    def back() -> bool:
        """Whether the broker has noticed the cut and returned the messages."""
        letters = direct.process_dead_letters(lambda _: DeadLetterAction.KEEP)
        dead.update(letter.body for letter in letters)
        return dead >= {b"1", b"2"}

    with opened(options) as direct:
        eventually(back)
    waiting = set()
    while (got := raw.basic_get(options.queue, auto_ack=True))[0] is not None:
        waiting.add(got[2])
    assert dead | waiting == {b"0", b"1", b"2"}

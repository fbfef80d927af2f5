"""What RabbitMQ adds to a queue's contract: other programs, cut wires, and strange messages."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from adapters.rabbitmq.options import MAX_MESSAGE_BYTES, RabbitOptions, TlsOptions
from adapters.rabbitmq.queue import RabbitQueue
from application.ports import Delivery, DeliveryLost, QueueUnavailable
from tests.services.proxy import Proxy
from tests.services.queues import PORT, opened, own_options, raw_channel

pytestmark = pytest.mark.integration

PATIENCE = 20.0


@pytest.fixture
def options() -> Iterator[RabbitOptions]:
    with own_options() as made:
        yield made


@pytest.fixture
def queue(options: RabbitOptions) -> Iterator[RabbitQueue]:
    with opened(options) as made:
        yield made


@pytest.fixture
def raw() -> Iterator[BlockingChannel]:
    with raw_channel() as channel:
        yield channel


def receive(queue: RabbitQueue, patience: float = PATIENCE) -> Delivery:
    """The next message, through every outage."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            delivery = queue.receive(0.2)
        except QueueUnavailable:
            continue
        if delivery is not None:
            return delivery
    raise AssertionError("no message came")


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def publish_as_the_backend(raw: BlockingChannel, queue: str, body: bytes) -> None:
    raw.queue_declare(queue=queue, durable=True)
    properties = BasicProperties(delivery_mode=2, content_type="application/json")
    raw.basic_publish("", queue, body, properties)


def fetch(raw: BlockingChannel, queue: str) -> tuple[BasicProperties, bytes]:
    _, properties, body = raw.basic_get(queue, auto_ack=True)
    assert properties is not None
    assert body is not None
    return properties, body


# --- Beside the backend ------------------------------------------------------------------


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


def test_who_only_publishes_counts_and_sifts_takes_no_message(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.publish(b"{}")
    queue.sift(lambda _: True)
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


def test_a_queue_of_another_kind_is_told_with_its_remedy(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    raw.queue_declare(options.queue, durable=True, arguments={"x-max-length": 5})
    with pytest.raises(QueueUnavailable, match=r"other arguments: delete it.*x-max-length"):
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


def test_by_default_one_message_is_held_at_a_time(
    options: RabbitOptions, queue: RabbitQueue
) -> None:
    queue.publish(b'{"n": 1}')
    queue.publish(b'{"n": 2}')
    first = receive(queue)
    assert queue.receive(0.3) is None
    with opened(options, "another") as another:
        assert receive(another).body == b'{"n": 2}'
    queue.acknowledge(first)
    again = receive(queue)
    assert (again.body, again.redelivered) == (b'{"n": 2}', True)


def test_closing_gives_back_at_once_what_is_unsettled(
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


# --- The ladder of pauses ----------------------------------------------------------------


@pytest.mark.parametrize(("delay", "step"), [(0.1, "300ms"), (0.4, "1500ms"), (99.0, "1500ms")])
def test_a_pause_is_rounded_up_to_a_step_and_the_longest_bounds_it(
    options: RabbitOptions, queue: RabbitQueue, delay: float, step: str
) -> None:
    queue.publish(b"{}")
    before = time.monotonic()
    queue.retry_later(receive(queue), delay, "busy")
    if step == "1500ms":
        assert queue.depths()[f"{options.queue}.retry.{step}"] == 1
    assert receive(queue).retries == 1
    assert time.monotonic() - before >= min(delay, 1.5)


def test_a_short_pause_does_not_wait_behind_a_long_one() -> None:
    with own_options(delays=(0.2, 60.0)) as options, opened(options) as queue:
        queue.publish(b'{"n": 1}')
        queue.publish(b'{"n": 2}')
        queue.retry_later(receive(queue), 60.0, "long")
        queue.retry_later(receive(queue), 0.2, "short")
        assert receive(queue).body == b'{"n": 2}'


def test_a_message_keeps_its_properties_while_it_waits_but_those_that_would_lose_it(
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


def test_a_move_without_its_queue_leaves_the_message_and_makes_the_queue_anew(
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


def test_a_full_queue_refuses_and_the_message_stays(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.publish(b"{}")
    delivery = receive(queue)
    dead = f"{options.queue}.dead"
    raw.queue_delete(dead)
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    raw.queue_declare(dead, durable=True, arguments=full)
    raw.basic_publish("", dead, b"the one that has room")
    with pytest.raises(QueueUnavailable, match="is it full"):
        queue.dead_letter(delivery, "wrong")
    raw.queue_delete(dead)
    queue.dead_letter(receive(queue), "wrong")
    assert [letter.body for letter in queue.sift(lambda _: False)] == [b"{}"]


# --- Messages of every kind --------------------------------------------------------------


def test_of_an_oversized_message_the_beginning_is_delivered_and_the_whole_dead_lettered(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    body = b"x" * (3 * MAX_MESSAGE_BYTES) + b"end"
    queue.publish(body)
    delivery = receive(queue)
    assert delivery.body == body[: MAX_MESSAGE_BYTES + 1]
    queue.dead_letter(delivery, "too long")
    assert fetch(raw, f"{options.queue}.dead")[1] == body


def test_a_boundless_reason_is_cut_to_what_fits_into_a_frame(queue: RabbitQueue) -> None:
    queue.publish(b"{}")
    details = {f"{number} " + "ß" * 1000: "画" * 100_000 for number in range(300)}
    queue.dead_letter(receive(queue), "\ud800" + "Grüße " * 100_000, details)
    (letter,) = queue.sift(lambda _: False)
    assert letter.reason.startswith("\\ud800Grüße Grüße")
    assert 3000 < len(letter.reason.encode()) <= 4000
    assert 20 <= len(letter.details) < 30
    assert all(len(value.encode()) <= 1000 for value in letter.details.values())


class RawHeaders(BasicProperties):
    """Properties that are nothing but these bytes for a table of headers."""

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
def test_strange_headers_stop_nobody(
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
    assert [letter.body for letter in queue.sift(lambda _: False)] == [b'{"n": 1}']


def test_a_dead_letter_of_somebody_elses_making_is_shown(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.depths()
    headers = {"trainer-details": "none", "trainer-since": "yesterday", "trainer-reason": 5}
    raw.basic_publish("", f"{options.queue}.dead", b"1", BasicProperties(headers=headers))
    raw.basic_publish("", f"{options.queue}.dead", b"2")
    first, second = queue.sift(lambda _: False)
    assert (first.reason, first.details, first.since) == ("5", {}, None)
    assert (second.body, second.reason) == (b"2", "no reason is on record")


# --- Sifting -----------------------------------------------------------------------------


def test_letters_that_come_in_while_sifting_are_left_for_the_next_time(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.depths()
    for number in range(3):
        raw.basic_publish("", f"{options.queue}.dead", b"%d" % number)

    def one_more(_: object) -> bool:
        raw.basic_publish("", f"{options.queue}.dead", b"new")
        return False

    assert [letter.body for letter in queue.sift(one_more)] == [b"0", b"1", b"2"]
    bodies = [letter.body for letter in queue.sift(lambda _: False)]
    assert bodies == [b"0", b"1", b"2", b"new", b"new", b"new"]


def test_a_sifter_that_fails_leaves_every_letter(
    options: RabbitOptions, queue: RabbitQueue, raw: BlockingChannel
) -> None:
    queue.depths()
    for number in range(3):
        raw.basic_publish("", f"{options.queue}.dead", b"%d" % number)

    def fail(letter: object) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.sift(fail)
    assert queue.depths()[f"{options.queue}.dead"] == 3


def test_a_sifting_that_is_cut_off_leaves_every_letter_in_one_queue_at_least(
    options: RabbitOptions, raw: BlockingChannel
) -> None:
    with Proxy(PORT) as proxy, opened(replace(options, port=proxy.port)) as queue:
        queue.depths()
        for number in range(3):
            raw.basic_publish("", f"{options.queue}.dead", b"%d" % number)

        def cut_at_the_second(letter: Any) -> bool:
            if letter.body == b"1":
                proxy.cut()
            return True

        with pytest.raises(QueueUnavailable, match="sift again"):
            queue.sift(cut_at_the_second)
        dead = {letter.body for letter in queue.sift(lambda _: False)}
    waiting = set()
    while (got := raw.basic_get(options.queue, auto_ack=True))[0] is not None:
        waiting.add(got[2])
    assert dead >= {b"1", b"2"}
    assert dead | waiting == {b"0", b"1", b"2"}


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
    # The broker does take connections away from those who let their heart stop for so long.
    with pytest.raises(AMQPError):
        idle.channel()


def test_a_cut_connection_comes_back_by_itself_and_is_told_once(
    options: RabbitOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = replace(options, reconnect_first=0.05, reconnect_longest=0.1)
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
    told = [(record.levelno, record.getMessage()) for record in ours]
    assert [level for level, _ in told].count(logging.INFO) == 2
    warnings = [text for level, text in told if level == logging.WARNING]
    assert len(warnings) == len(set(warnings)) <= 3
    assert not [text for level, text in told if level > logging.WARNING]


def test_a_broker_that_stops_answering_is_given_up_and_the_message_comes_again(
    options: RabbitOptions,
) -> None:
    impatient = replace(options, answer_timeout=1.0, heartbeat=2)
    with Proxy(PORT) as proxy, opened(replace(impatient, port=proxy.port)) as queue:
        queue.publish(b"{}")
        delivery = receive(queue)
        proxy.hold()
        with pytest.raises(QueueUnavailable, match="no answer in 1 s"):
            queue.retry_later(delivery, 0.1, "busy")
        proxy.cut()
        proxy.release()
        again = receive(queue)
        assert again.body == b"{}"
        queue.acknowledge(again)


def test_a_cancelled_consumer_begins_anew_and_what_it_held_is_lost(
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
        queue.hand_back(delivery)
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
        worker = threading.Thread(target=lambda: (time.sleep(1.0), done.set()))
        worker.start()
        proxy.cut()
        again = receive(queue)
        assert not done.is_set()
        worker.join()
        with pytest.raises(DeliveryLost):
            queue.acknowledge(delivery)
        queue.acknowledge(again)
        assert queue.depths()[options.queue] == 0


# --- What is wrong, and its remedy -------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "password": ({"password": "s3cret-x"}, "refuses user 'guest': check user name and password"),
    "vhost": ({"vhost": "nowhere"}, "no virtual host 'nowhere': create it or name another"),
    "port": ({"port": 1}, "nothing listens there: start the broker, or check host and port"),
    "host": ({"host": "nowhere.invalid"}, "name is not known .*: check the host"),
    "TLS": ({"tls": TlsOptions(), "port": PORT}, "no TLS connection .*check that this port uses"),
    "CA file": ({"tls": TlsOptions(certificate=Path("none.pem"))}, "No such file"),
}


@pytest.mark.parametrize(("wrong", "remedy"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_told_apart_with_its_remedy_once(
    options: RabbitOptions,
    wrong: dict[str, Any],
    remedy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    given = {"password": "s3cret-x", **wrong} if "password" in wrong else wrong
    options = replace(options, reconnect_first=0.02, reconnect_longest=0.05, **given)
    with opened(options) as queue:
        for _ in range(3):
            with pytest.raises(QueueUnavailable, match=remedy) as raised:
                queue.publish(b"{}")
            assert "s3cret" not in str(raised.value)
        with pytest.raises(QueueUnavailable, match=remedy):
            queue.receive(0.3)
    told = [r for r in caplog.records if r.name.startswith("adapters") and r.levelno > 20]
    assert len(told) == 1
    assert "s3cret" not in caplog.text + repr(options)

"""The contract of every queue. For a new adapter add a parameter to ``harness``."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapters.common.queue_ports import DeadLetterAction, DeadLetters, QueueDepths
from adapters.memory import ManualClock, MemoryQueue
from adapters.spool import SpoolQueue
from application.ports import Delivery, DeliveryLost, Queue, QueueUnavailable
from tests.services.queues import PORT, opened, own_options
from tests.services.tcp_proxy import Proxy

SETTLE: dict[str, Callable[[Queue, Delivery], None]] = {
    "acknowledge": lambda queue, delivery: queue.acknowledge(delivery),
    "retry_later": lambda queue, delivery: queue.retry_later(delivery, 0.1, "reason"),
    "dead_letter": lambda queue, delivery: queue.dead_letter(delivery, "reason"),
    "requeue": lambda queue, delivery: queue.requeue(delivery),
}
every_way = pytest.mark.parametrize("settle", SETTLE.values(), ids=SETTLE.keys())


@dataclass(frozen=True)
class Harness:
    """An empty queue, and what a test does to it from outside."""

    queue: Queue
    sleep: Callable[[float], None]
    """Wait for a number of seconds."""
    lose: Callable[[], None]
    """Requeue all unacknowledged messages, as when their worker dies."""
    dead_letters: DeadLetters
    """The dead letters of ``queue``."""
    depths: QueueDepths
    """The depths of ``queue`` and its companions."""
    another: Queue
    """The same messages, as another worker sees them."""
    unit: float = 1.0
    """Seconds that stand for one second: less than 1 if the test really waits."""
    timeout: float = 1.0
    """Maximum number of seconds in which a due message arrives."""

    def advance(self, units: float) -> None:
        self.sleep(units * self.unit)

    def retry_later(self, delivery: Delivery, units: float, reason: str) -> None:
        self.queue.retry_later(delivery, units * self.unit, reason)

    def receive(self) -> Delivery:
        delivery = self.queue.receive(self.timeout)
        assert delivery is not None
        return delivery

    def dead(self) -> list[tuple[bytes, str]]:
        """Bodies of the dead letters, each with its reason, oldest first."""
        return [
            (letter.body, letter.reason)
            for letter in self.dead_letters.process_dead_letters(lambda _: DeadLetterAction.KEEP)
        ]

    def is_idle(self) -> bool:
        """Whether nothing is delivered, also after a lost connection is restored."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return self.queue.receive(0.5) is None
            except QueueUnavailable:
                if time.monotonic() > deadline:
                    raise


@pytest.fixture(
    params=["memory", "spool", pytest.param("rabbitmq", marks=pytest.mark.integration)]
)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    clock = ManualClock()
    if request.param == "memory":
        queue = MemoryQueue(clock)
        yield Harness(queue, clock.advance, queue.lose_all, queue, queue, queue)
    elif request.param == "spool":
        yield _spool(tmp_path / "spool", clock)
    else:
        with _rabbitmq() as harness:
            yield harness


@contextmanager
def _rabbitmq() -> Iterator[Harness]:
    with (
        own_options(delays=(0.3, 1.5)) as options,
        Proxy(PORT) as proxy,
        opened(replace(options, port=proxy.port)) as queue,
        opened(options, "another") as another,
    ):
        yield Harness(queue, time.sleep, proxy.cut, queue, queue, another, unit=0.3, timeout=20.0)


def _spool(folder: Path, clock: ManualClock) -> Harness:
    numbers = itertools.count()
    queue = SpoolQueue(folder, clock, lambda: str(next(numbers)))

    def lose() -> None:
        # A lock goes with its file, and these files are new ones under the old names.
        for message in folder.glob("*.json"):
            copy = message.with_suffix(".copy")
            shutil.copy2(message, copy)
            copy.replace(message)

    another = SpoolQueue(folder, clock, lambda: str(next(numbers)))
    return Harness(queue, clock.advance, lose, queue, queue, another)


def test_an_empty_queue_delivers_nothing(harness: Harness) -> None:
    assert harness.is_idle()


def test_messages_come_in_the_order_of_publishing_unchanged(harness: Harness) -> None:
    bodies = [b'{"n": 1}', '{"tag": "Grüße 画"}'.encode(), b'{\r\n"n": 3\n}']
    for body in bodies:
        harness.queue.publish(body)
    deliveries = [harness.receive() for _ in bodies]
    assert [delivery.body for delivery in deliveries] == bodies
    assert [(d.retries, d.redelivered) for d in deliveries] == [(0, False)] * 3
    assert len({delivery.id for delivery in deliveries}) == 3


def test_equal_messages_are_two_messages(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    harness.queue.publish(b"{}")
    harness.queue.acknowledge(harness.receive())
    harness.queue.acknowledge(harness.receive())
    assert harness.is_idle()


def test_an_unacknowledged_message_is_delivered_to_no_other_consumer(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    harness.receive()
    harness.advance(10.0)
    assert harness.is_idle()


def test_an_acknowledged_message_is_gone(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    harness.queue.acknowledge(harness.receive())
    harness.lose()
    assert harness.is_idle()
    assert harness.dead() == []


def test_a_lost_workers_message_is_redelivered_with_the_flag(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    first = harness.receive()
    harness.lose()
    again = harness.receive()
    assert (again.body, again.retries, again.redelivered) == (b"{}", 0, True)
    assert again.id != first.id


@every_way
def test_settling_a_lost_delivery_changes_nothing(
    harness: Harness, settle: Callable[[Queue, Delivery], None]
) -> None:
    harness.queue.publish(b"{}")
    delivery = harness.receive()
    harness.lose()
    with pytest.raises(DeliveryLost):
        settle(harness.queue, delivery)
    again = harness.receive()
    assert (again.body, again.retries) == (b"{}", 0)
    assert harness.dead() == []
    harness.queue.acknowledge(again)


@every_way
@pytest.mark.parametrize("again", SETTLE.values(), ids=SETTLE.keys())
def test_a_delivery_is_settled_once(
    harness: Harness,
    settle: Callable[[Queue, Delivery], None],
    again: Callable[[Queue, Delivery], None],
) -> None:
    harness.queue.publish(b"{}")
    delivery = harness.receive()
    settle(harness.queue, delivery)
    with pytest.raises(DeliveryLost):
        again(harness.queue, delivery)


def test_a_message_retried_later_comes_after_its_delay_and_counts(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    for retries in range(3):
        delivery = harness.receive()
        assert (delivery.body, delivery.retries) == (b"{}", retries)
        harness.retry_later(delivery, 5.0, "the store is unavailable")
        assert harness.is_idle()
        harness.advance(5.0)


def test_a_retry_that_does_not_count_leaves_the_count(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    harness.retry_later(harness.receive(), 1.0, "the store is unavailable")
    for _ in range(2):
        harness.advance(1.0)
        waiting = harness.receive()
        assert waiting.retries == 1
        harness.queue.retry_later(waiting, harness.unit, "another worker is busy", counts=False)


def test_a_message_retried_later_blocks_no_other(harness: Harness) -> None:
    harness.queue.publish(b'{"n": 1}')
    harness.queue.publish(b'{"n": 2}')
    harness.retry_later(harness.receive(), 5.0, "busy")
    assert harness.receive().body == b'{"n": 2}'


def test_the_retry_count_survives_a_lost_worker(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    harness.retry_later(harness.receive(), 1.0, "busy")
    harness.advance(1.0)
    harness.receive()
    harness.lose()
    assert harness.receive().retries == 1


def test_a_dead_letter_is_kept_with_its_reason_and_not_delivered(harness: Harness) -> None:
    harness.queue.publish(b'{"n": 1}')
    harness.queue.publish(b'{"n": 2}')
    harness.queue.dead_letter(harness.receive(), "data.style_id='x': give a number")
    harness.queue.dead_letter(harness.receive(), "Künstler unbekannt")
    harness.lose()
    assert harness.is_idle()
    assert harness.dead() == [
        (b'{"n": 1}', "data.style_id='x': give a number"),
        (b'{"n": 2}', "Künstler unbekannt"),
    ]


def test_a_dead_letter_keeps_the_details_of_its_reason_and_its_time(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    details = {"field": "data.tags", "value": "'Grüße\n画'", "remedy": "give a list"}
    harness.queue.dead_letter(harness.receive(), "wrong", details)
    (letter,) = harness.dead_letters.process_dead_letters(lambda _: DeadLetterAction.KEEP)
    assert letter.details.items() >= details.items()
    assert letter.since is not None


def test_listing_dead_letters_keeps_them_and_a_chosen_one_is_requeued(harness: Harness) -> None:
    bodies = [b'{"n": 1}', b'{"n": 2}', b'{"n": 3}']
    for body in bodies:
        harness.queue.publish(body)
        harness.queue.dead_letter(harness.receive(), "the backend rejects")
    for _ in range(2):
        assert [
            letter.body
            for letter in harness.dead_letters.process_dead_letters(
                lambda _: DeadLetterAction.KEEP
            )
        ] == bodies
    assert harness.is_idle()

    shown = harness.dead_letters.process_dead_letters(
        lambda letter: (
            DeadLetterAction.PUT_BACK if letter.body == bodies[1] else DeadLetterAction.KEEP
        )
    )
    assert [letter.body for letter in shown] == bodies
    again = harness.receive()
    assert (again.body, again.retries) == (bodies[1], 0)
    assert harness.is_idle()
    assert [body for body, _ in harness.dead()] == [bodies[0], bodies[2]]
    harness.queue.acknowledge(again)


def test_a_dead_letter_that_is_dropped_is_gone_and_the_others_stay(harness: Harness) -> None:
    for body in (b'{"n": 1}', b'{"n": 2}', b'{"n": 3}'):
        harness.queue.publish(body)
        harness.queue.dead_letter(harness.receive(), "the style was deleted")
    harness.dead_letters.process_dead_letters(
        lambda letter: DeadLetterAction.DROP if b"2" in letter.body else DeadLetterAction.KEEP
    )
    assert [body for body, _ in harness.dead()] == [b'{"n": 1}', b'{"n": 3}']
    assert harness.is_idle()


def test_a_requeued_dead_letter_may_be_dead_lettered_again(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    harness.queue.dead_letter(harness.receive(), "once")
    harness.dead_letters.process_dead_letters(lambda _: DeadLetterAction.PUT_BACK)
    harness.queue.dead_letter(harness.receive(), "twice")
    assert harness.dead() == [(b"{}", "twice")]


def test_depths_count_waiting_and_dead_messages(harness: Harness) -> None:
    before = sum(harness.depths.depths().values())
    harness.queue.publish(b'{"n": 1}')
    harness.queue.publish(b'{"n": 2}')
    harness.queue.dead_letter(harness.receive(), "wrong")
    assert sum(harness.depths.depths().values()) == before + 2


def test_a_worker_that_does_not_receive_leaves_the_messages_to_others(harness: Harness) -> None:
    bodies = [b'{"n": 1}', b'{"n": 2}', b'{"n": 3}']
    for body in bodies[:2]:
        harness.queue.publish(body)
    harness.queue.acknowledge(harness.receive())
    second = harness.another.receive(harness.timeout)
    assert second is not None
    assert second.body == bodies[1]
    assert harness.is_idle()
    harness.queue.publish(bodies[2])
    third = harness.another.receive(harness.timeout)
    assert third is not None
    assert third.body == bodies[2]


def test_a_requeued_message_comes_again_at_once_and_does_not_count(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    harness.queue.requeue(harness.receive())
    again = harness.receive()
    assert (again.body, again.retries, again.redelivered) == (b"{}", 0, True)


def test_settling_one_delivery_leaves_the_others_unacknowledged(harness: Harness) -> None:
    harness.queue.publish(b'{"n": 1}')
    harness.queue.publish(b'{"n": 2}')
    first, second = harness.receive(), harness.receive()
    harness.queue.requeue(second)
    assert harness.receive().body == b'{"n": 2}'
    harness.queue.acknowledge(first)
    assert harness.is_idle()


def test_a_delivery_may_be_settled_from_another_thread(harness: Harness) -> None:
    harness.queue.publish(b"{}")
    delivery = harness.receive()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(harness.queue.acknowledge, delivery).result()
    harness.lose()
    assert harness.is_idle()


def test_several_threads_share_the_messages_and_none_comes_twice(harness: Harness) -> None:
    bodies = [b'{"n": %d}' % number for number in range(40)]
    together = threading.Barrier(4)
    for body in bodies:
        harness.queue.publish(body)

    def consume(_number: int) -> list[bytes]:
        together.wait(30)
        got = []
        while (delivery := harness.queue.receive(0.5)) is not None:
            got.append(delivery.body)
            harness.queue.acknowledge(delivery)
        return got

    with ThreadPoolExecutor(4) as pool:
        consumed = [body for got in pool.map(consume, range(4)) for body in got]
    assert sorted(consumed) == sorted(bodies)

"""The spool folder beyond a queue's contract: several processes, and files put there by hand."""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from adapters.clock import SystemClock
from adapters.common.queue_ports import DeadLetterAction
from adapters.memory import ManualClock
from adapters.spool import SETTLING_SECONDS, SpoolQueue
from application.ports import MAX_MESSAGE_BYTES, Delivery, DeliveryLost, QueueUnavailable

processes = multiprocessing.get_context("spawn")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "spool"
    made.mkdir()
    return made


@pytest.fixture
def queue(folder: Path, clock: ManualClock) -> SpoolQueue:
    return open_queue(folder, clock)


def open_queue(folder: Path, clock: ManualClock) -> SpoolQueue:
    numbers = itertools.count()
    return SpoolQueue(folder, clock, lambda: f"id{next(numbers)}")


def receive(queue: SpoolQueue) -> Delivery:
    delivery = queue.receive(0.0)
    assert delivery is not None
    return delivery


def visible(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def hold_a_message(folder: Path, holding: Event) -> None:
    queue = SpoolQueue(folder, SystemClock(), lambda: "unused")
    if queue.receive(10.0) is not None:
        holding.set()
        time.sleep(600)


def test_the_message_of_a_killed_process_is_requeued(folder: Path, queue: SpoolQueue) -> None:
    queue.publish(b"{}")
    holding = processes.Event()
    worker = processes.Process(target=hold_a_message, args=(folder, holding))
    worker.start()
    try:
        assert holding.wait(60)
        assert queue.receive(0.0) is None
    finally:
        worker.kill()
        worker.join()
    again = receive(queue)
    assert (again.body, again.retries, again.redelivered) == (b"{}", 0, True)


def test_a_message_removed_between_open_and_lock_is_not_delivered(
    folder: Path, queue: SpoolQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.publish(b"{}")
    lock = fcntl.flock

    def lock_too_late(file: Any, operation: int) -> None:
        for message in folder.glob("*.json"):
            message.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    assert queue.receive(0.0) is None


def test_a_json_file_dropped_into_the_folder_is_a_message(folder: Path, queue: SpoolQueue) -> None:
    (folder / "task.json").write_bytes(b'{"task": 1}\n')
    (folder / "notes.txt").write_bytes(b"{}")
    (folder / ".hidden.json").write_bytes(b"{}")
    (folder / "below.json").mkdir()
    (folder / "below.json" / "task.json").write_bytes(b"{}")
    (folder / "dangling.json").symlink_to(folder / "nowhere")
    delivery = receive(queue)
    assert delivery.body == b'{"task": 1}\n'
    assert queue.receive(0.0) is None
    queue.acknowledge(delivery)
    assert visible(folder) == [".hidden.json", "below.json/task.json", "notes.txt"]


def test_a_partially_written_file_is_delivered_when_complete(
    folder: Path, queue: SpoolQueue
) -> None:
    (folder / "task.json").write_bytes(b'{"task":')
    assert queue.receive(SETTLING_SECONDS / 2) is None
    (folder / "task.json").write_bytes(b'{"task": 1}')
    assert receive(queue).body == b'{"task": 1}'


@pytest.mark.parametrize("body", [b"", b"not JSON", b'{"task":', b"[1]"])
def test_an_invalid_file_is_delivered_once_it_stops_changing(
    folder: Path, queue: SpoolQueue, body: bytes
) -> None:
    (folder / "task.json").write_bytes(body)
    delivery = queue.receive(SETTLING_SECONDS + 1)
    assert delivery is not None
    assert delivery.body == body


def test_a_message_being_moved_into_the_folder_is_not_seen(
    folder: Path, queue: SpoolQueue
) -> None:
    queue.publish(b"{}")
    (name,) = (path.name for path in folder.glob("*.json"))
    (folder / name).replace(folder / ".state" / f"{name}.coming")
    assert queue.receive(SETTLING_SECONDS + 1) is None


def test_an_oversized_message_is_delivered_truncated(folder: Path, queue: SpoolQueue) -> None:
    body = b"{" + b" " * MAX_MESSAGE_BYTES + b"\n" * 100 + b"}"
    (folder / "task.json").write_bytes(body)
    delivery = receive(queue)
    assert delivery.body == body[: MAX_MESSAGE_BYTES + 1]
    queue.dead_letter(delivery, "too long")
    assert (folder / "dead" / "task.json").read_bytes() == body


def test_retry_count_and_delay_survive_the_process(
    folder: Path, queue: SpoolQueue, clock: ManualClock
) -> None:
    queue.publish(b"{}")
    queue.retry_later(receive(queue), 60.0, "busy")
    heir = open_queue(folder, clock)
    assert heir.receive(0.0) is None
    clock.advance(60.0)
    delivery = receive(heir)
    assert (delivery.retries, delivery.redelivered) == (1, False)


def test_a_corrected_file_of_the_same_name_starts_with_no_retries(
    folder: Path, queue: SpoolQueue
) -> None:
    (folder / "task.json").write_bytes(b'{"task": "wrong"}')
    queue.retry_later(receive(queue), 600.0, "busy")
    (folder / "task.json").unlink()
    (folder / "task.json").write_bytes(b'{"task": "right"}')
    delivery = receive(queue)
    assert (delivery.body, delivery.retries) == (b'{"task": "right"}', 0)


def test_a_file_replaced_while_unacknowledged_is_not_lost(folder: Path, queue: SpoolQueue) -> None:
    (folder / "task.json").write_bytes(b'{"task": "wrong"}')
    delivery = receive(queue)
    (folder / "task.json").write_bytes(b'{"task": "right"}')
    with pytest.raises(DeliveryLost, match=r"task\.json"):
        queue.acknowledge(delivery)
    assert receive(queue).body == b'{"task": "right"}'


def test_a_file_removed_while_unacknowledged_is_a_lost_delivery(
    folder: Path, queue: SpoolQueue
) -> None:
    queue.publish(b"{}")
    delivery = receive(queue)
    for message in folder.glob("*.json"):
        message.unlink()
    with pytest.raises(DeliveryLost):
        queue.retry_later(delivery, 1.0, "busy")
    assert queue.receive(2.0) is None


def test_dead_letters_of_the_same_name_are_all_kept(folder: Path, queue: SpoolQueue) -> None:
    for number in (b"1", b"2", b"3"):
        (folder / "task.json").write_bytes(b'{"task": %s}' % number)
        queue.dead_letter(receive(queue), "wrong")
    dead_letters = sorted((folder / "dead").glob("*.json"))
    assert sorted(dead_letter.read_bytes()[-2:] for dead_letter in dead_letters) == [
        b"1}",
        b"2}",
        b"3}",
    ]
    for dead_letter in dead_letters:
        note = json.loads(dead_letter.with_name(f"{dead_letter.name}.reason").read_text("utf-8"))
        assert note == {"since": "2026-01-01T00:00:00+00:00", "reason": "wrong", "details": {}}


def test_an_acknowledged_message_leaves_no_file(folder: Path, queue: SpoolQueue) -> None:
    queue.publish(b"{}")
    queue.retry_later(receive(queue), 0.0, "busy")
    queue.acknowledge(receive(queue))
    assert visible(folder) == []


def test_a_dropped_dead_letter_leaves_no_file(folder: Path, queue: SpoolQueue) -> None:
    (folder / "task.json").write_bytes(b"{}")
    queue.dead_letter(receive(queue), "wrong")
    assert visible(folder) == ["dead/task.json", "dead/task.json.reason"]
    queue.process_dead_letters(lambda _: DeadLetterAction.DROP)
    assert visible(folder) == []


def test_a_waiting_receive_sees_a_new_message_soon(
    folder: Path, queue: SpoolQueue, clock: ManualClock
) -> None:
    assert queue.receive(0.05) is None
    assert clock.monotonic() == pytest.approx(0.05)

    def arrive() -> None:
        (folder / "task.json").write_bytes(b"{}")

    with clock.every(1.0, arrive):
        assert queue.receive(30.0) is not None
    assert clock.monotonic() < 2.0


def test_an_unreadable_file_is_logged_once_and_blocks_no_other(
    folder: Path,
    queue: SpoolQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (folder / "a.json").write_bytes(b'{"task": 1}')
    (folder / "b.json").write_bytes(b'{"task": 2}')
    opened = Path.open

    def locked(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == "a.json" and path.parent == folder:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", locked)
    with caplog.at_level(logging.WARNING):
        assert receive(queue).body == b'{"task": 2}'
        assert queue.receive(1.0) is None
    assert caplog.text.count("a.json is skipped: Permission denied") == 1


@pytest.mark.parametrize("length", [201, 249, 255])
def test_a_file_with_a_long_name_is_logged_once_and_blocks_no_other(
    folder: Path, queue: SpoolQueue, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    (folder / f"{'a' * (length - 5)}.json").write_bytes(b"{}")
    (folder / "b.json").write_bytes(b'{"task": 2}')
    assert receive(queue).body == b'{"task": 2}'
    assert queue.receive(1.0) is None
    assert caplog.text.count("a.json is skipped: its name is too long; give one of") == 1


def test_a_file_with_the_longest_name_can_be_settled_in_every_way(
    folder: Path, queue: SpoolQueue
) -> None:
    for _ in range(2):
        (folder / f"{'a' * 195}.json").write_bytes(b"{}")
        queue.retry_later(receive(queue), 0.0, "busy")
        queue.requeue(receive(queue))
        queue.dead_letter(receive(queue), "wrong")
    assert queue.depths() == {"waiting": 0, "dead": 2}


@pytest.mark.parametrize("unreadable", ["a.json", ".state/a.json"])
def test_a_read_error_of_one_file_blocks_no_other(
    folder: Path,
    queue: SpoolQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unreadable: str,
) -> None:
    (folder / "a.json").write_bytes(b'{"task": 1}')
    queue.requeue(receive(queue))
    (folder / "b.json").write_bytes(b'{"task": 2}')
    stat, read = Path.is_file, Path.read_bytes

    def fail(plain: Any) -> Any:
        def call(path: Path) -> Any:
            if path == folder / unreadable:
                raise OSError(5, "Input/output error")
            return plain(path)

        return call

    monkeypatch.setattr(Path, "is_file", fail(stat))
    monkeypatch.setattr(Path, "read_bytes", fail(read))
    assert receive(queue).body == b'{"task": 2}'
    assert queue.receive(1.0) is None
    assert caplog.text.count("a.json is skipped: Input/output error") == 1


def test_a_full_disk_is_an_unavailable_queue(
    folder: Path, queue: SpoolQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "task.json").write_bytes(b"{}")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.fsync", fail)
        with pytest.raises(QueueUnavailable, match="No space left"):
            queue.receive(0.0)
    assert receive(queue).body == b"{}"


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\x00",
        b'{"stamp": %d, "not_before": "x"}',
        b'{"stamp": %d, "retries": null}',
        b'{"stamp": %d, "retries": 1.5}',
    ],
)
def test_a_damaged_sidecar_file_of_a_message_is_ignored(
    folder: Path, queue: SpoolQueue, damage: bytes
) -> None:
    (folder / "task.json").write_bytes(b"{}")
    queue.requeue(receive(queue))
    stamp = b"%d" % (folder / "task.json").stat().st_mtime_ns
    (folder / ".state" / "task.json").write_bytes(damage.replace(b"%d", stamp))
    assert receive(queue).retries == 0


def test_a_delay_noted_while_the_clock_was_years_ahead_does_not_hide_a_message(
    folder: Path, clock: ManualClock
) -> None:
    years = 10 * 365 * 86400.0
    clock.jump(years)
    queue = open_queue(folder, clock)
    queue.publish(b"{}")
    queue.retry_later(receive(queue), 60.0, "busy")
    clock.jump(-years)
    assert receive(queue).retries == 1


def test_a_delay_is_at_most_an_hour(queue: SpoolQueue, clock: ManualClock) -> None:
    queue.publish(b"{}")
    queue.retry_later(receive(queue), 1e9, "busy")
    assert queue.receive(0.0) is None
    clock.advance(3600.0)
    assert receive(queue).retries == 1


def test_a_folder_that_cannot_be_created_is_an_unavailable_queue(
    tmp_path: Path, clock: ManualClock
) -> None:
    (tmp_path / "file").write_bytes(b"")
    queue = open_queue(tmp_path / "file" / "spool", clock)
    with pytest.raises(QueueUnavailable, match=r"SPOOL_DIR: .*file"):
        queue.receive(0.0)
    with pytest.raises(QueueUnavailable, match=r"SPOOL_DIR: .*file"):
        queue.publish(b"{}")


def test_a_message_that_cannot_be_settled_is_redelivered(
    folder: Path, queue: SpoolQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.publish(b"{}")
    delivery = receive(queue)

    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", fail)
        with pytest.raises(QueueUnavailable, match="No space left"):
            queue.dead_letter(delivery, "wrong")
    assert receive(queue).redelivered
    assert len(list(folder.glob("*.json"))) == 1


def test_a_message_that_any_worker_holds_does_not_count_as_waiting(
    folder: Path, clock: ManualClock, queue: SpoolQueue
) -> None:
    queue.publish(b'{"n": 1}')
    queue.publish(b'{"n": 2}')
    (folder / "a folder.json").mkdir()
    held, other = receive(queue), open_queue(folder, clock)
    for worker in (queue, other):
        assert worker.depths() == {"waiting": 1, "dead": 0}
    assert receive(other).body == b'{"n": 2}', "counting takes no message"
    queue.requeue(held)
    for worker in (queue, other):
        assert worker.depths() == {"waiting": 1, "dead": 0}

"""The in-memory adapters beyond their contracts, as other tests rely on them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from adapters.memory import ManualClock, MemoryInspector, MemoryQueue, MemoryTrainer
from application.stop_signal import StopSignal
from domain.image import TrainingImage
from domain.parameters import TrainingParameters
from domain.training_plan import TrainingPlan


def test_the_manual_clock_stands_still_and_jumps_in_wall_time_only() -> None:
    clock = ManualClock(datetime(2026, 3, 1, tzinfo=UTC))
    clock.sleep(10.0)
    clock.jump(-3600.0)
    assert clock.now() == datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=10 - 3600)
    assert clock.monotonic() == 10.0


def test_actions_are_called_in_the_order_of_their_due_times() -> None:
    clock = ManualClock()
    calls: list[tuple[str, float]] = []
    with (
        clock.every(3.0, lambda: calls.append(("slow", clock.monotonic()))),
        clock.every(2.0, lambda: calls.append(("fast", clock.monotonic()))),
    ):
        clock.advance(6.5)
    assert calls == [("fast", 2.0), ("slow", 3.0), ("fast", 4.0), ("slow", 6.0), ("fast", 6.0)]
    assert clock.monotonic() == 6.5


def test_an_action_that_sleeps_blocks_only_itself() -> None:
    clock = ManualClock()
    calls: list[str] = []

    def sleeper() -> None:
        calls.append("sleeps")
        clock.sleep(2.5)
        calls.append("wakes")

    with clock.every(2.0, sleeper), clock.every(1.5, lambda: calls.append("other")):
        clock.advance(2.0)
    assert calls == ["other", "sleeps", "other", "other", "wakes"]
    assert clock.monotonic() == 4.5


def test_the_memory_queue_lists_waiting_unacknowledged_and_dead_messages() -> None:
    clock = ManualClock()
    queue = MemoryQueue(clock)
    for body in (b"1", b"2", b"3"):
        queue.publish(body)
    held, dead = queue.receive(0.0), queue.receive(0.0)
    assert held is not None
    assert dead is not None
    queue.dead_letter(dead, "wrong")
    assert (queue.waiting, queue.unsettled) == ([b"3"], [held])
    assert [(letter.body, letter.reason) for letter in queue.dead] == [(b"2", "wrong")]
    queue.retry_later(held, 5.0, "busy")
    assert (queue.waiting, queue.unsettled) == ([b"3", b"1"], [])


def test_an_idle_receive_waits_for_messages_until_its_timeout() -> None:
    clock = ManualClock()
    queue = MemoryQueue(clock)
    with clock.every(3.0, lambda: queue.publish(b"1")):
        assert queue.receive(2.0) is None
        assert queue.receive(2.0) is not None
    assert clock.monotonic() == 4.0


def test_a_step_of_the_memory_trainer_advances_the_clock() -> None:
    clock = ManualClock()
    trainer = MemoryTrainer(clock, step_seconds=0.5)
    facts = MemoryInspector().inspect(b"1", 512, StopSignal()).facts
    plan = TrainingPlan(
        style_id=1,
        images=(TrainingImage("1.png", b"1", facts),),
        tags=(),
        parameters=TrainingParameters(epochs=4, resolution=512),
    )
    with trainer.open(plan, None) as session:
        while not session.finished:
            session.advance()
        losses = [record.loss for record in session.history]
    assert clock.monotonic() == 2.0
    assert losses == sorted(losses, reverse=True)
    assert trainer.opened == 1

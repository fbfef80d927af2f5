"""The loops of a worker: receive a message, run its task, settle it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from application.circuit_breaker import CircuitBreaker
from application.event_bus import EventSink, MessageSettled, TaskReceived
from application.ports import Clock, Delivery, DeliveryLost, Queue, QueueUnavailable, TrainerBroken
from application.reject_invalid_task import invalid_task_id
from application.retry import sleep
from application.settlement import Ack, DeadLetter, Requeue, RetryLater, Settlement
from application.stop_signal import StopReason, StopSignal
from domain.task import InvalidTask, TrainingTask

log = logging.getLogger(__name__)

RECEIVE_SECONDS = 1.0
"""Timeout of one receive, and so the longest time until an idle worker notices a stop."""
UNAVAILABLE_PAUSE = 2.0
"""Seconds between receives while the queue is unavailable."""
DUPLICATE_SECONDS = 60.0
"""Retry delay of a second delivery of a task that this worker is still processing."""


@dataclass(frozen=True, kw_only=True)
class WorkerLoop:
    """Processes one message at a time."""

    queue: Queue
    parse: Callable[[bytes], TrainingTask]
    """Parses a message's body. Raises ``InvalidTask``."""
    run: Callable[[TrainingTask, StopSignal, int], Settlement]
    reject: Callable[[bytes, InvalidTask, StopSignal, int], Settlement]
    clock: Clock
    events: EventSink
    circuit_breaker: CircuitBreaker
    """Shared by all loops of this worker."""
    active: dict[str, Delivery] = field(default_factory=dict)
    """The deliveries that all loops of this worker are processing, by task id."""
    idle_seconds: float = 3.0
    """Seconds of receives without a message after which an idle worker finds the queue empty."""
    not_ready: Callable[[], str | None] = lambda: None
    """Returns why the worker cannot take tasks now, or None; called before each receive."""

    def __call__(self, stop: StopSignal, *, until_empty: bool = False) -> bool:
        """Process messages until ``stop``, or until the queue is empty.

        Returns:
            False if the worker left the queue because it cannot take tasks now.

        Raises:
            TrainerBroken: the device failed, so every further task would fail too. The message is
                back in the queue.
        """
        unavailable, idle, paused = False, 0.0, False
        while stop.reason is None:
            if (trouble := self.circuit_breaker.pause_reason or self.not_ready()) is not None:
                if not paused:
                    log.error("the worker receives no tasks: %s", trouble)
                if until_empty:
                    return False
                paused = True
                sleep(UNAVAILABLE_PAUSE, self.clock, stop)
                continue
            if paused:
                log.info("the worker receives tasks again")
                paused = False
            try:
                delivery = self.queue.receive(RECEIVE_SECONDS)
            except QueueUnavailable as error:
                # A short pause is enough: the queue has its own backoff between connections.
                if not unavailable:
                    log.warning("queue unavailable: %s", error)
                unavailable = True
                sleep(UNAVAILABLE_PAUSE, self.clock, stop)
                continue
            if unavailable:
                log.info("queue available again")
                unavailable = False
            if delivery is None:
                idle += RECEIVE_SECONDS
                if until_empty and idle >= self.idle_seconds and not self.active:
                    break
                continue
            idle = 0.0
            settlement = self._process(delivery, stop)
            if isinstance(settlement, RetryLater) and settlement.device_broken:
                log.critical("the worker exits: its device has failed")
                raise TrainerBroken(settlement.reason)
        return True

    def _process(self, delivery: Delivery, stop: StopSignal) -> Settlement:
        task: TrainingTask | InvalidTask
        try:
            task = self.parse(delivery.body)
            task_id = task.task_id
        except InvalidTask as error:
            task, task_id = error, invalid_task_id(delivery.body)
        if self.active.setdefault(task_id, delivery) is not delivery:
            reason = "this worker is processing another delivery of the task"
            settlement: Settlement = RetryLater(
                DUPLICATE_SECONDS, reason, counts=False, elsewhere=True
            )
            self._settle(delivery, settlement)
            self.events(MessageSettled(task_id=None, settlement=settlement))
            return settlement
        if task.style_id is not None:
            created_at = None if isinstance(task, InvalidTask) else task.created_at
            self.events(
                TaskReceived(task_id=task_id, style_id=task.style_id, created_at=created_at)
            )
        try:
            if isinstance(task, InvalidTask):
                log.warning("invalid message, task %s: %s", task.task_id or "unknown", task)
                settlement = self.reject(delivery.body, task, stop, delivery.retries)
            else:
                log.info("received task %s for style %d", task_id, task.style_id)
                settlement = self.run(task, stop, delivery.retries)
            self._settle(delivery, settlement)
        finally:
            del self.active[task_id]
        self.events(MessageSettled(task_id=task_id, settlement=settlement))
        match settlement:
            case Ack():
                self.circuit_breaker.succeeded()
            case RetryLater(unexpected=True):
                self.circuit_breaker.failed(task_id)
        return settlement

    def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Settle the message at the queue. If that fails, the queue delivers the message again."""
        try:
            match settlement:
                case Ack():
                    self.queue.acknowledge(delivery)
                case RetryLater(delay, reason, counts):
                    log.warning("the message will be retried: %s", reason)
                    self.queue.retry_later(delivery, delay, reason, counts=counts)
                case DeadLetter(reason, details):
                    log.error("message moved to the dead letters: %s", reason)
                    self.queue.dead_letter(delivery, reason, details)
                case Requeue():
                    self.queue.requeue(delivery)
        except DeliveryLost:
            log.warning("delivery lost: the broker will deliver the message again")
        except QueueUnavailable as error:
            log.warning(
                "could not settle the delivery; the queue will deliver the message again: %s",
                error,
            )


@dataclass(frozen=True)
class WorkerPool:
    """Runs the loops, each in a thread; a single loop in the caller's thread."""

    loops: Sequence[WorkerLoop]

    def __call__(self, stop: StopSignal, *, until_empty: bool = False) -> bool:
        """Run until ``stop``, or until all loops find the queue empty. Returns as one loop does.

        If a loop raises, the others shut down in an orderly way, and the error is raised.
        """
        if len(self.loops) == 1:
            return self.loops[0](stop, until_empty=until_empty)
        stop = StopSignal(stop)
        with ThreadPoolExecutor(len(self.loops), thread_name_prefix="slot") as pool:
            loops = [pool.submit(loop, stop, until_empty=until_empty) for loop in self.loops]
            try:
                wait(loops, return_when=FIRST_EXCEPTION)
            finally:
                # If one loop failed, stop the others.
                stop.request(StopReason.SHUTDOWN)
        results = [ended.result() for ended in loops]  # raises a loop's error
        return any(results)

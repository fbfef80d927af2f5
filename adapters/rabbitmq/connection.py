"""The thread that owns the connection, serves its heartbeats, and always reconnects."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adapters.rabbitmq.errors import SessionEnded, explain, is_expected
from adapters.rabbitmq.options import RabbitOptions
from adapters.rabbitmq.pika_patches import read_every_message
from adapters.rabbitmq.session import Session
from application.ports import Clock, DeliveryLost, QueueUnavailable
from application.retry import backoff

log = logging.getLogger(__name__)

T = TypeVar("T")

PUMP_SECONDS = 1.0
CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class _Command:
    """A call to run on the connection's thread."""

    run: Callable[[Session], Any]
    lost: Exception | None
    """Error to raise when the current session ends; None: wait for the next session."""
    result: Future[Any] = field(default_factory=Future)


class Connection:
    """A connection that reconnects by itself. The first call opens it.

    Args:
        open_session: connects; called on the thread.
        ended: called on the thread when a session is over, before waiting calls fail.
        random: returns 0 to 1; spreads the reconnects of many workers.
    """

    def __init__(
        self,
        options: RabbitOptions,
        open_session: Callable[[], Session],
        ended: Callable[[], None],
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self._options = options
        self._open_session = open_session
        self._ended = ended
        self._clock = clock
        self._random = random
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._commands: deque[_Command] = deque()
        self._session: Session | None = None
        self._trouble: str | None = None
        self._overdue = self._closed = False

    def open(self) -> None:
        """Connect, unless an earlier call has.

        Raises:
            QueueUnavailable: the connection opens when the broker is available again.
        """
        if self._thread is None:
            self.call(lambda _session: None)

    def wake(self) -> None:
        """Make the session adapt its consumers now."""
        with self._changed:
            session = self._session
        if session is not None:
            session.wake()

    def check(self) -> None:
        """Raise unless the broker is connected.

        Raises:
            QueueUnavailable: with the reason.
        """
        with self._changed:
            if self._session is None:
                raise QueueUnavailable(self._reason())

    def call(self, run: Callable[[Session], T], *, lost: Exception | None = None) -> T:
        """Call ``run`` on the connection's thread and return its result.

        Without a session and without ``lost``, waits for one until the next attempt to
        connect fails or the call times out.

        Args:
            lost: raised when there is no session, or the session ends before ``run`` does.

        Raises:
            QueueUnavailable: ``run`` may or may not have had its effect.
        """
        command = _Command(run, lost)
        with self._changed:
            if self._session is None and lost is not None:
                raise lost
            if self._closed:
                raise QueueUnavailable(self._reason())
            self._commands.append(command)
            if self._thread is None:
                name = f"RabbitMQ {self._options.where}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
        self.wake()
        try:
            result: T = command.result.result(self._options.response_timeout)
        except TimeoutError:
            command.result.cancel()
            # End the session, so that the broker requeues its unsettled messages.
            self._overdue = True
            raise QueueUnavailable(
                f"RabbitMQ at {self._options.where}: no response in "
                f"{self._options.response_timeout:.0f} s ({self._trouble or 'connected'})"
            ) from None
        return result

    def close(self) -> None:
        """Close the connection for good; unsettled messages go back to the queue."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        self.wake()
        if thread is not None:
            thread.join(CLOSE_SECONDS)

    # --- On the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        _quiet_pika()
        read_every_message()
        failures = 0
        while not self._closed:
            began = self._clock.monotonic()
            try:
                self._run_session()
            except Exception as error:
                if not is_expected(error):
                    log.exception("an unexpected error ended the session with RabbitMQ")
                self._mark_disconnected(explain(error, self._options))
            if self._clock.monotonic() - began > self._options.max_reconnect_delay:
                failures = 0
            with self._changed:
                self._changed.wait_for(lambda: self._closed, self._pause(failures))
            failures += 1
        self._fail_commands()

    def _run_session(self) -> None:
        """Run one session until it ends or ``close`` is called."""
        session = self._open_session()
        try:
            # Start consumers first: while the broker rejects them, it counts as unavailable. Their
            # messages come later, in ``pump``: only a connected session can settle them.
            session.match_receivers()
            self._mark_connected(session)
            while not self._closed:
                while self._commands:
                    self._execute(self._commands.popleft(), session)
                if self._overdue:
                    raise SessionEnded("it did not respond in time")
                session.pump(PUMP_SECONDS)
        finally:
            with self._changed:
                self._session, self._overdue = None, False
            self._ended()
            session.close()

    def _execute(self, command: _Command, session: Session) -> None:
        if not command.result.set_running_or_notify_cancel():
            return
        try:
            command.result.set_result(command.run(session))
        except (QueueUnavailable, DeliveryLost) as error:
            command.result.set_exception(error)
        except Exception as error:
            with self._changed:
                self._session = None
            failure = QueueUnavailable(explain(error, self._options))
            own = isinstance(error, SessionEnded)
            command.result.set_exception(failure if own else command.lost or failure)
            raise

    def _mark_connected(self, session: Session) -> None:
        with self._changed:
            self._session, self._trouble, self._overdue = session, None, False
        log.info("connected to RabbitMQ at %s", self._options.where)

    def _mark_disconnected(self, trouble: str) -> None:
        with self._changed:
            news = trouble != self._trouble
            self._trouble = trouble
        if news:
            log.warning("%s; retrying until connected", trouble)
        self._fail_commands()

    def _fail_commands(self) -> None:
        with self._changed:
            failed, self._commands = self._commands, deque()
        for command in failed:
            if command.result.set_running_or_notify_cancel():
                command.result.set_exception(command.lost or QueueUnavailable(self._reason()))

    def _reason(self) -> str:
        if self._closed:
            return f"RabbitMQ at {self._options.where}: this queue is closed"
        return self._trouble or f"RabbitMQ at {self._options.where}: not connected yet"

    def _pause(self, failures: int) -> float:
        """Seconds until the next attempt to connect."""
        first, longest = self._options.first_reconnect_delay, self._options.max_reconnect_delay
        return backoff(failures, first=first, max_pause=longest, random=self._random)


def _quiet_pika() -> None:
    """Silence pika, which logs each failed attempt with a traceback."""
    logger = logging.getLogger("pika")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)

"""Graceful shutdown on SIGTERM or Ctrl-C; a second signal or the timeout exits immediately."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from application.stop_signal import StopReason, StopSignal
from entrypoints.exit_codes import EXIT_SHUTDOWN_TIMEOUT

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals_handled(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """While open, ``handler`` gets SIGTERM and SIGINT; then the former handlers do again.

    ``SIG_DFL`` ends the process even while an import swallows KeyboardInterrupt.
    """
    former = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)


@contextmanager
def graceful_shutdown(stop: StopSignal, shutdown_timeout: float) -> Iterator[None]:
    """While open, the first signal sets ``stop`` and starts the timeout.

    A separate thread waits for signals, because Python runs signal handlers only after the main
    thread returns from native code, and a training step can take seconds.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    former = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(
        target=_listen, args=(receiver, stop, shutdown_timeout), name="signals", daemon=True
    )
    thread.start()
    try:
        with signals_handled(lambda *_: None):
            yield
    finally:
        signal.set_wakeup_fd(former)
        sender.close()
        thread.join()
        receiver.close()


def _listen(signals: socket.socket, stop: StopSignal, shutdown_timeout: float) -> None:
    first = _next(signals)
    if first is None:
        return
    deadline = time.monotonic() + shutdown_timeout
    log.info("%s: stopping within %g s", signal.Signals(first).name, shutdown_timeout)
    stop.request(StopReason.SHUTDOWN, deadline=deadline)
    signals.settimeout(max(0.0, deadline - time.monotonic()))
    try:
        second = _next(signals)
    except (TimeoutError, BlockingIOError):  # BlockingIOError: no time is left
        log.warning(
            "not stopped within %g s: the broker will redeliver the message", shutdown_timeout
        )
        os._exit(EXIT_SHUTDOWN_TIMEOUT)
    if second is not None:
        log.warning("%s again: exiting immediately", signal.Signals(second).name)
        os._exit(128 + second)


def _next(signals: socket.socket) -> int | None:
    """Wait for the next handled signal and return its number; None once the socket is closed."""
    while received := signals.recv(1):
        if received[0] in SIGNALS:
            return received[0]
    return None

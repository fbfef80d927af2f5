"""Graceful shutdown, and the forced exit of a process that does not finish in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from application.stop_signal import StopReason, StopSignal
from entrypoints.exit_codes import EXIT_SHUTDOWN_TIMEOUT
from entrypoints.shutdown import SIGNALS, graceful_shutdown
from tests.services.commands import ROOT, environment
from tests.services.waiting import eventually

PROGRAM = """
import sys, time
from application.stop_signal import StopSignal
from entrypoints.shutdown import graceful_shutdown

stop = StopSignal()
with graceful_shutdown(stop, float(sys.argv[1])):
    print("ready", flush=True)
    while stop.reason is None or sys.argv[2] == "deaf":
        time.sleep(0.01)
"""


@contextmanager
def started(timeout: float, hearing: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(timeout), hearing],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


WORKER_THAT_LOADS = """
import os, sys
from entrypoints import models, worker

def swallowing_imports():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
    except KeyboardInterrupt:
        print("swallowed")

models.import_libraries = swallowing_imports
worker.main([])
"""


CHECK_THAT_HANGS = """
import os, sys, time
from entrypoints import check, models, worker

def hanging_check(*_, **__):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)

models.import_libraries = lambda: None
check.check = hanging_check
worker.main(["--check"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program", [WORKER_THAT_LOADS, CHECK_THAT_HANGS], ids=["load", "check"])
def test_a_signal_during_imports_or_a_check_ends_the_worker_at_once(
    program: str, number: signal.Signals, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, str(int(number))],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ended = (done.returncode, done.stdout, done.stderr)
    assert ended == (-number, "", "")  # a shell shows 130 and 143; a fleet sees no failure


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_requests_a_graceful_shutdown(number: signal.Signals) -> None:
    with started(30.0, "hearing") as process:
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_shutdown_deadline_is_the_shutdown_timeout(number: signal.Signals) -> None:
    stop, begun = StopSignal(), time.monotonic()
    with graceful_shutdown(stop, 30.0):
        os.kill(os.getpid(), number)
        eventually(lambda: stop.reason is StopReason.SHUTDOWN)
        assert stop.deadline is not None
        assert 30.0 <= stop.deadline - begun < 60.0


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_other_signals_are_ignored_and_handlers_restored() -> None:
    kinds = (*SIGNALS, signal.SIGUSR1)
    before, threads = [signal.getsignal(number) for number in kinds], threading.enumerate()
    received: list[int] = []
    own = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    stop = StopSignal()
    with graceful_shutdown(stop, 30.0):
        os.kill(os.getpid(), signal.SIGUSR1)
        eventually(lambda: received)
        time.sleep(0.05)
    signal.signal(signal.SIGUSR1, own)
    assert stop.reason is None
    assert [signal.getsignal(number) for number in kinds] == before
    assert threading.enumerate() == threads
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("timeout", [0.0, 0.2], ids=["over at once", "over soon"])
def test_the_process_exits_at_the_shutdown_timeout(timeout: float) -> None:
    """It also exits at once if the process was paused for longer than the timeout."""
    with started(timeout, "deaf") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == EXIT_SHUTDOWN_TIMEOUT


def test_a_second_signal_exits_at_once() -> None:
    with started(30.0, "deaf") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 128 + signal.SIGINT

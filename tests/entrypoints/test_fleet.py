"""Several workers under one command, replaced by small programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from domain.errors import UserError
from entrypoints import fleet, worker
from entrypoints.exit_codes import EXIT_FAILED, EXIT_SHUTDOWN_TIMEOUT, EXIT_USAGE
from entrypoints.fleet import Fleet, parse_gpus
from tests.services.waiting import eventually

LINGERING = """
import os, pathlib, signal, sys, time
def end(*_): sys.exit(0)
signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGINT, end)
pathlib.Path(os.environ["HERE"], os.environ["CUDA_VISIBLE_DEVICES"]).write_text(str(os.getpid()))
time.sleep(60)
"""


KILLED_ONCE = """
import os, pathlib, signal
file = pathlib.Path(os.environ["HERE"], "killed")
if not file.exists():
    file.touch()
    os.kill(os.getpid(), signal.SIGTERM)
"""
REJECTING_ON_0 = """
import os, sys
if os.environ["CUDA_VISIBLE_DEVICES"] == "0":
    sys.exit(2)
"""


def environment(folder: Path, gpu: str) -> dict[str, str]:
    return {**os.environ, "HERE": str(folder), "CUDA_VISIBLE_DEVICES": gpu}


def written(file: Path) -> bool:
    return file.exists() and bool(file.read_text())


def a_fleet(folder: Path, program: str, *, once: bool = False) -> Fleet:
    command = [sys.executable, "-c", program]
    return Fleet(("0", "2"), command, lambda gpu: environment(folder, gpu), once)


def when(holds: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    def wait() -> None:
        try:
            eventually(holds, within=30)
        finally:
            act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_all_means_every_gpu_of_the_driver_and_a_list_is_kept() -> None:
    assert parse_gpus("all", lambda: 3) == ("0", "1", "2")
    assert parse_gpus("1, 0", lambda: 0) == ("1", "0")


@pytest.mark.parametrize("text", ["all", "one", "0,0", "", "-1"])
def test_no_gpu_and_no_list_are_rejected(text: str) -> None:
    with pytest.raises(UserError, match=f"--gpus {text}"):
        parse_gpus(text, lambda: 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_worker_once_and_ends_the_fleet(
    tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    both = [tmp_path / "0", tmp_path / "2"]
    thread = when(lambda: all(map(written, both)), lambda: os.kill(os.getpid(), number))
    assert a_fleet(tmp_path, LINGERING).run() == 0
    thread.join()
    assert signal.getsignal(number) == before
    for file in both:
        assert subprocess.run(["ps", "-p", file.read_text()], capture_output=True).returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_startup_reaches_every_worker(
    tmp_path: Path, number: signal.Signals
) -> None:
    started: list[str] = []

    def second_brings_the_signal(gpu: str) -> dict[str, str]:
        started.append(gpu)
        if len(started) == 2:
            os.kill(os.getpid(), number)
        return environment(tmp_path, gpu)

    command = [sys.executable, "-c", LINGERING]
    assert Fleet(("0", "1", "2"), command, second_brings_the_signal).run() == 0
    assert started == ["0", "1"], "no worker starts after the signal"


def test_a_worker_that_exits_abnormally_is_a_failure(tmp_path: Path) -> None:
    program = LINGERING.replace("sys.exit(0)", f"sys.exit({EXIT_SHUTDOWN_TIMEOUT})")
    thread = when(lambda: written(tmp_path / "2"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert a_fleet(tmp_path, program).run() == EXIT_FAILED
    thread.join()


def test_a_defect_leaves_no_worker_behind(tmp_path: Path) -> None:
    def unknown_to_the_driver(gpu: str) -> dict[str, str]:
        if gpu == "1":
            eventually(lambda: written(tmp_path / "0"), within=30)
            session = os.getsid(int((tmp_path / "0").read_text()))
            assert session != os.getsid(0), "a terminal's Ctrl-C would reach it twice"
            raise RuntimeError("no such GPU")
        return environment(tmp_path, gpu)

    command = [sys.executable, "-c", LINGERING]
    with pytest.raises(RuntimeError, match="no such GPU"):
        Fleet(("0", "1"), command, unknown_to_the_driver).run()
    pid = (tmp_path / "0").read_text()
    eventually(lambda: has_ended(pid))


def has_ended(pid: str) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True)
    return state.returncode == 1 or state.stdout.startswith("Z")


def test_finished_workers_are_not_restarted(tmp_path: Path) -> None:
    assert a_fleet(tmp_path, "", once=True).run() == 0


def test_a_wrong_setting_ends_the_fleet(tmp_path: Path) -> None:
    program = REJECTING_ON_0 + LINGERING
    assert a_fleet(tmp_path, program).run() == 2


def test_a_worker_that_exits_is_restarted_after_a_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "RESTART_SECONDS", 0.25)
    both = [tmp_path / "0", tmp_path / "2"]
    thread = when(lambda: all(map(written, both)), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert a_fleet(tmp_path, KILLED_ONCE + LINGERING, once=True).run() == 0
    thread.join()
    killed = (tmp_path / "killed").stat().st_mtime
    assert max(file.stat().st_mtime for file in both) - killed >= 0.25


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "cuda:0,cuda:1"])
def test_a_fleet_and_a_named_device_are_mutually_exclusive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    monkeypatch.setenv("DEVICE", device)
    assert worker.main(["--gpus", "0,1"]) == EXIT_USAGE
    assert f"--gpus and DEVICE={device}: give one of the two" in capsys.readouterr().err

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

from adapters.common.gpu_reading import GpuReading
from adapters.nvml import GpuReader
from entrypoints import fleet, worker
from entrypoints.exit_codes import EXIT_FAILED, EXIT_SHUTDOWN_TIMEOUT, EXIT_USAGE
from entrypoints.fleet import Fleet
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


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Fleet]:
    """The fleets that commands start, on a machine with eight GPUs and without settings."""
    cards = [GpuReading(index=index, name="NVIDIA L4") for index in range(8)]
    monkeypatch.setattr(GpuReader, "__call__", lambda _: cards)
    for name in ("CUDA_VISIBLE_DEVICES", "DEVICE"):
        monkeypatch.delenv(name, raising=False)
    found: list[Fleet] = []

    def run(fleet: Fleet) -> int:
        found.append(fleet)
        return 0

    monkeypatch.setattr(Fleet, "run", run)
    return found


@pytest.mark.parametrize(
    ("visible", "gpus", "used"),
    [
        (None, "all", ("0", "1", "2", "3", "4", "5", "6", "7")),
        (None, "1, 0", ("1", "0")),
        ("2,3", "all", ("2", "3")),
        ("2, 3", "1", ("3",)),
        ("GPU-8f1a,MIG-4c0e/1/2", "all", ("GPU-8f1a", "MIG-4c0e/1/2")),
        ("5,-1,6", "all", ("5",)),
    ],
)
def test_a_fleet_uses_the_gpus_that_cuda_would(
    started: list[Fleet],
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    gpus: str,
    used: tuple[str, ...],
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker.main(["--gpus", gpus]) == 0
    environments = [started[0].environment_of(gpu) for gpu in started[0].gpus]
    assert tuple(one["CUDA_VISIBLE_DEVICES"] for one in environments) == used
    assert {one["DEVICE"] for one in environments} == {"cuda"}, "never the CPU instead"


def test_numbers_of_the_driver_are_in_its_order_and_visible_ones_in_cudas(
    started: list[Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    worker.main(["--gpus", "1"])
    assert started[0].environment_of("1")["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    worker.main(["--gpus", "1"])
    assert "CUDA_DEVICE_ORDER" not in started[1].environment_of("1")


@pytest.mark.parametrize(
    ("visible", "gpus", "message"),
    [
        (None, "9", "--gpus 9: there is no GPU 9; give numbers from 0 to 7"),
        (None, "0,8,9", "--gpus 0,8,9: there is no GPU 8, 9; give numbers from 0 to 7"),
        ("2", "2", "--gpus 2: there is no GPU 2; the only one is 0"),
        (None, "one", "--gpus one: give `all`, or different numbers such as 0,1"),
        (None, "0,0", "--gpus 0,0: give `all`"),
        (None, "-1", "--gpus -1: give `all`"),
        (None, "", "--gpus : give `all`"),
        ("", "all", "--gpus all: no GPU is visible; give the container its GPUs"),
        ("-1", "0", "--gpus 0: no GPU is visible"),
        ("0,0", "all", "--gpus all: no GPU is visible"),
    ],
)
def test_gpus_that_do_not_exist_are_named_before_a_worker_starts(
    started: list[Fleet],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    visible: str | None,
    gpus: str,
    message: str,
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert worker.main([f"--gpus={gpus}"]) == EXIT_USAGE
    assert message in capsys.readouterr().err
    assert not started


def test_a_machine_without_a_gpu_is_named(
    started: list[Fleet], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GpuReader, "__call__", lambda _: [])
    assert worker.main(["--gpus", "0"]) == EXIT_USAGE
    assert "--gpus 0: no GPU is visible" in capsys.readouterr().err
    assert not started


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


@pytest.mark.parametrize(
    ("end_on_0", "end_on_2", "code"),
    [
        ("os._exit(3)", "os._exit(3)", EXIT_SHUTDOWN_TIMEOUT),
        ("os._exit(0)", "os._exit(3)", EXIT_SHUTDOWN_TIMEOUT),
        ("os._exit(143)", "os._exit(143)", 143),
        ("os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", 137),
        ("os._exit(3)", "os._exit(143)", EXIT_FAILED),
    ],
)
def test_a_fleet_exits_with_the_code_of_its_workers(
    tmp_path: Path, end_on_0: str, end_on_2: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    end = f"exec({end_on_0!r} if os.environ['CUDA_VISIBLE_DEVICES'] == '0' else {end_on_2!r})"
    program = LINGERING.replace("sys.exit(0)", end)
    both = [tmp_path / "0", tmp_path / "2"]
    thread = when(lambda: all(map(written, both)), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert a_fleet(tmp_path, program).run() == code
    thread.join()
    if code == EXIT_FAILED:
        assert "the worker on GPU 0 exited with 3" in caplog.text
        assert "the worker on GPU 2 exited with 143" in caplog.text


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


@pytest.mark.parametrize("code", [EXIT_FAILED, EXIT_USAGE])
def test_a_worker_that_cannot_work_once_is_not_restarted(tmp_path: Path, code: int) -> None:
    program = REJECTING_ON_0.replace("sys.exit(2)", f"sys.exit({code})")
    assert a_fleet(tmp_path, program, once=True).run() == code


LOST_ON_0 = """
import os, pathlib, sys
starts = pathlib.Path(os.environ["HERE"], "starts" + os.environ["CUDA_VISIBLE_DEVICES"])
with starts.open("a") as file:
    file.write("x")
if starts.name == "starts0" and starts.stat().st_size < 3:
    sys.exit(starts.stat().st_size)
"""


def test_a_gpu_that_is_lost_stops_no_other_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker fails, then starts without a GPU, which is a wrong setting."""
    monkeypatch.setattr(fleet, "RESTART_SECONDS", 0.25)
    both = [tmp_path / "0", tmp_path / "2"]
    thread = when(lambda: all(map(written, both)), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert a_fleet(tmp_path, LOST_ON_0 + LINGERING).run() == 0
    thread.join()
    assert (tmp_path / "starts0").read_text() == "xxx"
    assert (tmp_path / "starts2").read_text() == "x"


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

"""Worker processes that are killed, paused and replaced, as by an orchestrator."""

from __future__ import annotations

import atexit
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from tests.services.commands import environment
from tests.services.fork_server import Command, ForkServer
from tests.services.ports import free_ports

MAX_ODD_EXITS = 5
"""Number of unexpected ends after which a campaign stops: its workers do not start."""


@dataclass
class Slot:
    """A place for one worker; each worker that ends is replaced."""

    number: int
    port: int
    """Port of the status page of its workers."""
    clock: Path
    """File with the offset of this slot's wall clock in seconds, for ``wall_clock.c``."""
    process: Command | None = None
    started: int = 0
    resumes_at: float | None = None
    """Monotonic time at which a paused process resumes."""

    @property
    def access_key(self) -> str:
        """Identifies the workers of this slot at the store's proxy."""
        return f"key-of-slot-{self.number}"


@cache
def server_with_wall_clock() -> ForkServer:
    """Forks workers whose wall clock can be set; without a file, it is the machine's."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    library = Path(folder.name) / "wall_clock.so"
    source = Path(__file__).with_name("wall_clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return ForkServer(library)


@dataclass
class Pool:
    """Keeps ``size`` workers running."""

    size: int
    settings: Mapping[str, str]
    folder: Path
    slots: list[Slot] = field(default_factory=list)
    violent_ends: list[float] = field(default_factory=list)
    """Wall-clock times at which a worker was killed, paused or exceeded its shutdown timeout."""
    odd_exits: list[tuple[int, int]] = field(default_factory=list)
    """Slot and exit code of every unexpected end."""
    expected: set[int] = field(default_factory=set)
    """Ids of processes that got a stop signal."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = free_ports(self.size)
        self.slots = [Slot(n, port, self.folder / f"clock-{n}") for n, port in enumerate(ports)]
        for slot in self.slots:
            slot.clock.write_bytes(bytes(8))

    def maintain(self) -> None:
        """Resume paused workers, and replace those that have ended."""
        for slot in self.slots:
            if slot.resumes_at is not None and time.monotonic() >= slot.resumes_at:
                self._signal(slot, signal.SIGCONT)
                slot.resumes_at = None
            if slot.process is not None and slot.process.poll() is not None:
                self._note_end(slot.process, slot)
                slot.process = None
            if slot.process is None:
                self._start(slot)

    def kill(self, slot: Slot) -> None:
        """kill -9."""
        self._expect(slot)
        self.violent_ends.append(time.time())
        self._signal(slot, signal.SIGKILL)

    def terminate(self, slot: Slot) -> None:
        """SIGTERM; after its shutdown timeout the worker exits."""
        self._expect(slot)
        self.violent_ends.append(time.time())
        self._signal(slot, signal.SIGTERM)

    def pause(self, slot: Slot, seconds: float) -> None:
        """Pause the process, as a live migration of its machine does."""
        if slot.resumes_at is None:
            self.violent_ends.append(time.time())
            self._signal(slot, signal.SIGSTOP)
            slot.resumes_at = time.monotonic() + seconds

    def jump(self, slot: Slot, seconds: int) -> None:
        """Move the slot's wall clock forward or back."""
        with slot.clock.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    def connect(self, slot: Slot, count: int) -> list[socket.socket]:
        """Connections to the slot's status page that send nothing; none if it is not there."""
        found: list[socket.socket] = []
        with suppress(OSError):
            while len(found) < count:
                found += [socket.create_connection(("127.0.0.1", slot.port), timeout=5)]
        return found

    def is_healthy(self, slot: Slot) -> bool:
        """Whether the slot's worker answers a health check, if it should."""
        try:
            with urlopen(f"http://127.0.0.1:{slot.port}/health/live", timeout=20) as response:
                return bool(response.status == 200)
        except OSError:
            worker = slot.process
            due = worker is not None and worker.poll() is None and slot.resumes_at is None
            return worker is None or not due or worker.pid in self.expected

    def heal(self) -> None:
        """Resume all workers and correct all clocks."""
        for slot in self.slots:
            slot.resumes_at = None
            self._signal(slot, signal.SIGCONT)
            self.jump(slot, 0)
        self.maintain()

    def stop(self) -> None:
        """Stop all workers, gracefully if possible."""
        for slot in self.slots:
            self._signal(slot, signal.SIGCONT)
            if slot.process is not None:
                self.expected.add(slot.process.pid)
                self._signal(slot, signal.SIGTERM)
        for slot in self.slots:
            if slot.process is not None:
                try:
                    slot.process.wait(30)
                except subprocess.TimeoutExpired:
                    slot.process.kill()
                    slot.process.wait()
                slot.process = None

    def logs(self) -> str:
        """Output of all workers."""
        files = sorted(self.folder.glob("worker-*.log"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def _start(self, slot: Slot) -> None:
        slot.started += 1
        server = server_with_wall_clock()
        settings = {
            **self.settings,
            "STATUS_PORT": str(slot.port),
            "WORKER_NAME": f"worker-{slot.number}-{slot.started}",
            "LD_PRELOAD": str(server.preload),
            "WALL_CLOCK_FILE": str(slot.clock),
        }
        if "AWS_ACCESS_KEY_ID" in settings:
            settings["AWS_ACCESS_KEY_ID"] = slot.access_key
        with self._log(slot).open("wb") as log:
            slot.process = Command(
                ["entrypoints.worker"],
                cwd=self.folder,
                env=environment(**settings),
                stdout=log,
                stderr=subprocess.STDOUT,
                server=server,
            )

    def _expect(self, slot: Slot) -> None:
        if slot.process is not None:
            self.expected.add(slot.process.pid)

    def _note_end(self, process: Command, slot: Slot) -> None:
        if process.pid in self.expected:
            return
        self.odd_exits.append((slot.number, process.returncode))
        if len(self.odd_exits) == MAX_ODD_EXITS:
            lines = self._log(slot).read_text(errors="replace").splitlines()[-20:]
            raise RuntimeError("\n".join([f"workers end by themselves: {self.odd_exits}", *lines]))

    def _log(self, slot: Slot) -> Path:
        """The log of the slot's latest worker."""
        return self.folder / f"worker-{slot.number}-{slot.started}.log"

    def _signal(self, slot: Slot, number: signal.Signals) -> None:
        if slot.process is not None and slot.process.poll() is None:
            slot.process.send_signal(number)

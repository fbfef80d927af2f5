"""A folder as the task queue: each JSON file in it is a message.

Putting a file there publishes it. A delivery is a lock on the file. The system frees the lock
when its holder dies, so that another worker receives the message.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from adapters.common.files import write_atomically
from adapters.common.queue_ports import DeadLetterAction, DeadMessage
from application.ports import MAX_MESSAGE_BYTES, Clock, Delivery, DeliveryLost, QueueUnavailable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
SETTLING_SECONDS = 2.0
"""Seconds without a change after which a file that does not end in ``}`` counts as complete."""
MAX_NAME_BYTES = 200
"""Longest name of a message's file: with a suffix it must fit into 255 bytes."""
LONG_NAME = f"its name is too long; give one of at most {MAX_NAME_BYTES} bytes"
MAX_DELAY_SECONDS = 3600.0
"""Longest delay of a retry."""


@dataclass(frozen=True)
class _State:
    """State of a message, stored in ``.state/``."""

    stamp: int
    """Modification time of the message's file: a new file under an old name gets a new state."""
    retries: int = 0
    not_before: float = 0.0
    """Unix time in seconds: workers share the folder, not a monotonic clock."""
    delivered: bool = False

    def __post_init__(self) -> None:
        if type(self.retries) is not int or not isinstance(self.not_before, int | float):
            raise TypeError("retries and not_before are numbers")


@dataclass(frozen=True)
class _Held:
    """A delivered message."""

    path: Path
    file: BinaryIO
    """The message's file, open and locked."""
    state: _State


class SpoolQueue:
    """Ports ``Queue``, ``DeadLetters`` and ``QueueDepths`` over a folder.

    Messages are ordered by file name. ``dead/`` holds the dead letters, each with a
    ``<name>.reason``; ``.state/`` holds a message's retries and the end of its delay.

    Args:
        folder: created on first use.
        new_id: returns a unique text for a file's name.
    """

    def __init__(self, folder: Path, clock: Clock, new_id: Callable[[], str]) -> None:
        self._folder = folder
        self._states = folder / ".state"
        self._dead = folder / "dead"
        self._clock = clock
        self._new_id = new_id
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._held: dict[str, _Held] = {}
        self._unfinished: dict[str, tuple[int, float]] = {}
        self._complained: set[str] = set()

    def publish(self, body: bytes) -> None:
        """Put a message at the end."""
        now = self._clock.now()
        name = f"{now:%Y%m%dT%H%M%S.%f}-{next(self._numbers):06d}-{self._new_id()}.json"
        with self._io_errors():
            self._states.mkdir(parents=True, exist_ok=True)
            incomplete = self._states / f"{name}.coming"
            write_atomically(self._folder / name, body, temporary=incomplete)

    def receive(self, timeout: float) -> Delivery | None:
        """The next message that is visible within ``timeout`` seconds."""
        deadline = self._clock.monotonic() + timeout
        while True:
            with self._lock, self._io_errors():
                delivery = self._take()
            remaining = deadline - self._clock.monotonic()
            if delivery is not None or remaining <= 0:
                return delivery
            self._clock.sleep(min(POLL_SECONDS, remaining))

    def acknowledge(self, delivery: Delivery) -> None:
        """Remove the file."""
        with self._settling(delivery) as held:
            held.path.unlink()
            self._state_path(held.path).unlink(missing_ok=True)

    def retry_later(
        self, delivery: Delivery, delay: float, reason: str, *, counts: bool = True
    ) -> None:
        """Hide the file for ``delay`` seconds of the wall clock."""
        with self._settling(delivery) as held:
            log.info("message %s will be retried in %.0f s: %s", held.path.name, delay, reason)
            not_before = self._clock.now().timestamp() + min(delay, MAX_DELAY_SECONDS)
            self._note(held.path, _State(held.state.stamp, delivery.retries + counts, not_before))

    def dead_letter(
        self, delivery: Delivery, reason: str, details: Mapping[str, str] | None = None
    ) -> None:
        """Move the file to ``dead/``."""
        with self._settling(delivery) as held:
            self._dead.mkdir(exist_ok=True)
            to = self._dead / held.path.name
            if to.exists():
                to = to.with_name(f"{to.stem}-{self._new_id()}{to.suffix}")
            note = {
                "since": self._clock.now().isoformat(),
                "reason": reason,
                "details": dict(details or {}),
            }
            text = json.dumps(note, indent=1, ensure_ascii=False)
            _reason_path(to).write_text(f"{text}\n", "utf-8")
            held.path.replace(to)
            self._state_path(held.path).unlink(missing_ok=True)

    def requeue(self, delivery: Delivery) -> None:
        """Unlock the file."""
        with self._settling(delivery):
            pass

    def process_dead_letters(
        self, decide: Callable[[DeadMessage], DeadLetterAction]
    ) -> list[DeadMessage]:
        """Pass the files in ``dead/`` to ``decide``; keep, remove or republish them as decided."""
        shown = []
        with self._io_errors():
            for path in sorted(self._dead.glob("*.json"), key=_age):
                message = _dead_message(path)
                shown.append(message)
                action = decide(message)
                if action is DeadLetterAction.PUT_BACK:
                    self.publish(message.body)
                if action is not DeadLetterAction.KEEP:
                    path.unlink()
                    _reason_path(path).unlink(missing_ok=True)
        return shown

    def depths(self) -> Mapping[str, int]:
        """Files by folder, without those that a worker holds."""
        # The lock: a file that is being counted cannot be received.
        with self._lock, self._io_errors():
            waiting = sum(map(_is_waiting, self._folder.glob("[!.]*.json")))
            dead = sum(1 for _ in self._dead.glob("*.json"))
        return {"waiting": waiting, "dead": dead}

    def _take(self) -> Delivery | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(os.listdir(self._folder)):
            if not name.endswith(".json") or name.startswith("."):
                continue
            try:
                if len(os.fsencode(name)) > MAX_NAME_BYTES:
                    raise OSError(errno.ENAMETOOLONG, LONG_NAME)
                read = self._read(self._folder / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                if name not in self._complained:
                    self._complained.add(name)
                    log.warning(
                        "message file %s is skipped: %s", self._folder / name, error.strerror
                    )
                continue
            if read is not None:
                return self._deliver(*read)
        return None

    def _read(self, path: Path) -> tuple[_Held, bytes] | None:
        """A message and its body, unless it is locked, delayed or still being written."""
        if not path.is_file():
            return None
        with ExitStack() as until_read:
            file = until_read.enter_context(path.open("rb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            stamp = _stamp(path, file)
            if stamp is None:
                return None
            state = self._state(path, stamp)
            # A longer wait was noted while the clock was wrong.
            if 0 < state.not_before - self._clock.now().timestamp() <= MAX_DELAY_SECONDS:
                return None
            body = file.read(MAX_MESSAGE_BYTES + 1)
            if not self._is_complete(path.name, body, stamp):
                return None
            until_read.pop_all()  # leaves the file open and locked
            return _Held(path, file, state), body

    def _deliver(self, held: _Held, body: bytes) -> Delivery:
        state = held.state
        with ExitStack() as until_noted:
            until_noted.enter_context(held.file)
            self._note(held.path, _State(state.stamp, state.retries, delivered=True))
            until_noted.pop_all()
        delivery = Delivery(
            f"{next(self._numbers)}:{held.path.name}", body, state.retries, state.delivered
        )
        self._held[delivery.id] = held
        return delivery

    def _is_complete(self, name: str, body: bytes, stamp: int) -> bool:
        """Whether the file seems completely written."""
        if body.rstrip().endswith(b"}") or len(body) > MAX_MESSAGE_BYTES:
            self._unfinished.pop(name, None)
            return True
        now = self._clock.monotonic()
        seen, since = self._unfinished.get(name, (stamp, now))
        if seen != stamp:
            since = now
        self._unfinished[name] = (stamp, since)
        return now - since >= SETTLING_SECONDS

    @contextmanager
    def _settling(self, delivery: Delivery) -> Iterator[_Held]:
        """The delivered message; released on exit, even after an error."""
        with self._lock:
            held = self._held.pop(delivery.id, None)
        if held is None:
            raise DeliveryLost(f"{delivery.id} is settled already")
        with held.file, self._io_errors():
            if _stamp(held.path, held.file) != held.state.stamp:
                raise DeliveryLost(f"{held.path} was removed or replaced")
            yield held

    def _state_path(self, path: Path) -> Path:
        return self._states / path.name

    def _state(self, path: Path, stamp: int) -> _State:
        try:
            state = _State(**json.loads(self._state_path(path).read_bytes()))
        except FileNotFoundError:
            return _State(stamp)
        except (ValueError, TypeError) as error:
            log.warning("message state %s is ignored: %s", self._state_path(path), error)
            return _State(stamp)
        return state if state.stamp == stamp else _State(stamp)

    def _note(self, path: Path, state: _State) -> None:
        self._states.mkdir(exist_ok=True)
        at, text = self._state_path(path), json.dumps(asdict(state))
        write_atomically(at, text.encode(), temporary=at.with_name(f"{at.name}.coming"))

    @contextmanager
    def _io_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self._folder
            raise QueueUnavailable(f"SPOOL_DIR: {where}: {error.strerror or error}") from error


def _is_waiting(path: Path) -> bool:
    """Whether no worker holds this message. One that cannot be read waits for a person."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return True
    return True


def _reason_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.reason")


def _dead_message(path: Path) -> DeadMessage:
    try:
        note = json.loads(_reason_path(path).read_bytes())
        since = datetime.fromisoformat(note["since"])
        return DeadMessage(path.read_bytes(), note["reason"], note["details"], since)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return DeadMessage(path.read_bytes(), "no reason is recorded")


def _age(path: Path) -> tuple[int, str]:
    """Sort key of dead letters: the time at which the reason was written."""
    try:
        return _reason_path(path).stat().st_mtime_ns, path.name
    except FileNotFoundError:
        return 0, path.name


def _stamp(path: Path, file: BinaryIO) -> int | None:
    """The open file's modification time; None if the path no longer names the file."""
    status = os.fstat(file.fileno())
    try:
        return status.st_mtime_ns if os.path.samestat(path.stat(), status) else None
    except FileNotFoundError:
        return None

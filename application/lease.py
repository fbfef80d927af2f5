"""The lease of a job: only the worker that holds it may work on the job.

A lease is a blob with an owner and an expiry. Workers acquire it by a write with ``IfAbsent``, and
renew it or take it over with ``IfMatch``, so of two workers exactly one succeeds. Clocks of
different machines differ and jump, so expiry alone is not enough: a worker watches a lease that
looks expired for twice its renewal interval, and takes it over only if it was not renewed.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from application.event_bus import EventSink, LeaseWritten
from application.fenced_blob import FencedBlob, RecordDamaged, Superseded, read_json
from application.ports import BlobDenied, BlobStore, Clock, Unavailable
from application.retry import retry, sleep
from application.stop_signal import StopReason, StopSignal
from domain.location import Location

log = logging.getLogger(__name__)

MAX_SECONDS = 3600.0
"""Longest term of a lease. A stored lease with a longer term is treated as having this one."""


class LeaseHeld(Exception):
    """Another worker holds the lease."""

    def __init__(self, owner: str, retry_after: float) -> None:
        super().__init__(f"worker {owner} holds the lease")
        self.retry_after = retry_after
        """Seconds after which to try again."""


class LeaseLost(Exception):
    """Another worker has taken over the job: stop, and write nothing more."""


@dataclass(frozen=True)
class LeaseTerms:
    """The term of a lease, and the intervals derived from it."""

    seconds: float = 60.0

    @property
    def renew_every(self) -> float:
        """Seconds between renewals: two may fail before the lease looks expired."""
        return self.seconds / 3

    @property
    def takeover_delay(self) -> float:
        """Seconds after the last renewal for which no worker takes over the lease, even if clocks
        are wrong."""
        return 2 * self.renew_every


@dataclass(frozen=True)
class _Record:
    owner: str
    """Empty when released."""
    expires_at: datetime
    seconds: float
    """The owner's term; other workers may have other terms."""

    @staticmethod
    def decode(fields: dict[str, Any]) -> _Record:
        seconds = float(fields.get("seconds", LeaseTerms.seconds))
        if not seconds > 0:
            raise ValueError(f"it lasts {seconds} seconds")
        expires_at = datetime.fromisoformat(fields["expires_at"]).astimezone(UTC)
        return _Record(str(fields["owner"]), expires_at, seconds)

    def remaining(self, now: datetime) -> float:
        return (self.expires_at - now).total_seconds()


class Lease:
    """One worker's claim to one job. Held between ``acquire`` and ``release``.

    ``renew`` may be called from any thread. It raises ``LeaseLost`` if another worker has the
    lease. Each write is published as ``LeaseWritten``. Every call may raise ``Unavailable`` and
    ``BlobDenied``.
    """

    def __init__(
        self,
        blob: FencedBlob,
        task_id: str,
        owner: str,
        terms: LeaseTerms,
        clock: Clock,
        events: EventSink,
    ) -> None:
        self._blob = blob
        self._task_id = task_id
        self._owner = owner
        self._terms = terms
        self._clock = clock
        self._events = events
        self._valid_until = -math.inf
        self._writing = threading.Lock()
        self.in_flight_until = -math.inf
        """Monotonic time, in seconds, until which a progress call of ours may still reach the
        backend. Until then ``hold`` does not release the lease: a takeover takes longer."""

    @property
    def is_valid(self) -> bool:
        """Whether no other worker can have the job. Becomes False if renewals fail, because other
        workers may still reach the store."""
        return self._clock.monotonic() < self._valid_until

    def acquire(self, stop: StopSignal) -> None:
        """Acquire the lease.

        Raises:
            LeaseHeld: another worker has it.
            Stopped: a stop was requested while watching an expired lease.
        """
        try:
            self._write(self._owner)
            return  # a new job: it has no lease yet
        except Superseded:
            found = self._read()
        if found is not None and found.owner:
            self._watch(found, stop)
        try:
            self._write(self._owner)
        except Superseded:
            raise LeaseHeld("unknown", self._terms.renew_every) from None

    def renew(self) -> None:
        try:
            self._write(self._owner)
        except Superseded as error:
            raise LeaseLost(str(error)) from None

    def renew_if_due(self, stop: StopSignal) -> None:
        """Renew the lease, unless it was renewed a moment ago; retry as ``retry`` does."""
        left = self._valid_until - self._clock.monotonic()
        if left < self._terms.takeover_delay - self._terms.renew_every / 4:
            retry(self.renew, self._clock, stop)

    def release(self, *, delete: bool) -> None:
        """Release the lease, so that the next worker can acquire it immediately.

        With ``delete`` the blob is deleted: safe for a finished job, because the next worker reads
        the outcome from the journal. Otherwise the lease is marked as released, because some
        stores do not support conditional deletes. If another worker may have the lease, it is
        marked first even with ``delete``; that write fails if another worker has it.
        """
        if not (delete and self.is_valid):
            try:
                self._write("")
            except Superseded:
                return
        if delete:
            self.delete()
            self._valid_until = -math.inf

    def delete(self) -> None:
        """Delete the lease's blob after the job is finished."""
        try:
            self._blob.delete()
        except BlobDenied as error:
            log.warning("could not delete the lease of a finished job: %s", error)

    def _read(self) -> _Record | None:
        """A damaged record counts as an expired lease."""
        try:
            return self._blob.read(_Record.decode)
        except RecordDamaged as error:
            log.warning("the lease will be replaced: %s", error)
            return _Record("unknown", self._clock.now(), self._terms.seconds)

    def _watch(self, record: _Record, stop: StopSignal) -> None:
        # The term is capped: a forged lease must not block the job for years.
        theirs = LeaseTerms(min(max(record.seconds, self._terms.seconds), MAX_SECONDS))
        remaining = record.remaining(self._clock.now())
        if 0 < remaining <= 2 * theirs.seconds:
            raise LeaseHeld(record.owner, min(remaining, self._terms.seconds))
        seen = self._blob.etag
        sleep(theirs.takeover_delay, self._clock, stop)
        stop.check()
        self._read()
        if self._blob.etag != seen:
            raise LeaseHeld(record.owner, self._terms.seconds)
        log.warning("lease %s taken over from dead worker %s", self._blob.at, record.owner)

    @contextmanager
    def hold(self, stop: StopSignal, is_finished: Callable[[], bool]) -> Iterator[None]:
        """Hold the lease while the context is open, and renew it in the background.

        Losing the lease sets ``stop``. An unreachable store does not: usually other workers cannot
        reach it either. If one can and takes over, the journal's conditional writes protect the
        record, and ``is_valid`` prevents calls to the backend.

        Args:
            is_finished: called at the end; True deletes the lease of the finished job.

        Raises:
            LeaseHeld, Stopped: as ``acquire``.
            Unavailable: also if the lease of a finished job could not be deleted at the end.
        """

        def renew() -> None:
            try:
                self.renew()
            except LeaseLost:
                stop.request(StopReason.LEASE_LOST)
            except Unavailable as error:
                log.warning("lease not renewed, will retry: %s", error)

        self.acquire(stop)
        try:
            with self._clock.every(self._terms.renew_every, renew):
                yield
        except BaseException:
            # An error of the release must not replace the one raised here.
            with suppress(Unavailable, BlobDenied):
                self._release_at_end(stop, is_finished())
            raise
        self._release_at_end(stop, is_finished())

    def _release_at_end(self, stop: StopSignal, is_finished: bool) -> None:
        in_flight = self._clock.monotonic() < self.in_flight_until
        if in_flight or stop.reason is StopReason.LEASE_LOST:
            return
        try:
            release = partial(self.release, delete=is_finished)
            retry(release, self._clock, stop, self._terms.seconds)
        except (Unavailable, BlobDenied) as error:
            if is_finished:
                raise  # redeliver the message: its next worker deletes the lease
            log.warning("lease not released, it will expire: %s", error)

    def _write(self, owner: str) -> None:
        with self._writing:
            began = self._clock.monotonic()
            expires = self._clock.now() + timedelta(seconds=self._terms.seconds)
            try:
                self._blob.write(
                    {
                        "owner": owner,
                        "expires_at": expires.isoformat(),
                        "seconds": self._terms.seconds,
                    }
                )
            except Exception as error:
                if isinstance(error, Superseded):
                    self._valid_until = -math.inf
                self._events(LeaseWritten(task_id=self._task_id, expires_at=expires, error=error))
                raise
            self._valid_until = began + self._terms.takeover_delay if owner else -math.inf
            self._events(LeaseWritten(task_id=self._task_id, expires_at=expires, error=None))


def lease_owner(blobs: BlobStore, at: Location, now: datetime) -> str | None:
    """The owner of the lease at ``at``; None if it is free, expired or damaged."""
    try:
        found = read_json(blobs, at, _Record.decode)
    except RecordDamaged:
        return None
    left = found.remaining(now) if found and found.owner else 0.0
    # A lease with more time left was written with a wrong clock.
    return found.owner if found and 0 < left <= 2 * min(found.seconds, MAX_SECONDS) else None

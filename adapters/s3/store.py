"""Port ``BlobStore`` on S3, and on what speaks its protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from botocore.exceptions import ClientError

from adapters.s3.client import connect
from adapters.s3.download import ChecksumMismatch, download
from adapters.s3.errors import DAMAGED, S3_ERRORS, error_code, status, translated
from adapters.s3.options import S3Options
from adapters.s3.upload import upload
from application.ports import (
    Blob,
    BlobDenied,
    BlobMissing,
    BlobUnavailable,
    Condition,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Bucket, InvalidLocation, Location

T = TypeVar("T")

TRIES = 3
"""Whole reads or writes that one call may cost, beyond what botocore repeats by itself."""
FIRST_PAUSE = 0.2
"""Seconds before the second try; they double."""


class _TryAgain(Exception):
    """This try came to nothing, for a reason that another one may not meet.

    Args:
        at_last: what to raise when the last try has come to nothing, too.
    """

    def __init__(self, reason: str, at_last: type[Exception] = BlobUnavailable) -> None:
        super().__init__(reason)
        self.at_last = at_last


class S3BlobStore:
    """Port ``BlobStore``. May be shared by threads.

    A bucket that does not exist is ``BlobDenied``: the set-up is wrong, not the blob's name.
    Credentials that the store does not accept are ``BlobUnavailable``: they say nothing of the
    task at hand, which is to wait until the worker has better ones.

    Args:
        options: where the store is and how to talk to it.
        readable: buckets that may be read; the writable ones may too.
        writable: buckets that may be written.
        sleep: waits so many seconds.

    Raises:
        BlobDenied: boto3's own configuration is wrong.
    """

    def __init__(
        self,
        options: S3Options,
        *,
        readable: Collection[str],
        writable: Collection[str],
        sleep: Callable[[float], None],
    ) -> None:
        self._options = options
        self._writable = frozenset(writable)
        self._readable = frozenset(readable) | self._writable
        self._sleep = sleep
        try:
            self._client = connect(options)
        except (*S3_ERRORS, ValueError) as error:
            raise BlobDenied(f"no client for S3 can be made: {error}") from error

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read a blob, checked by its length and checksum."""
        self._check_readable(at.bucket)
        _check_key(at)

        def attempt() -> Blob:
            try:
                return download(self._client, at, max_bytes, self._options.body_seconds)
            except ChecksumMismatch as error:
                raise _TryAgain(str(error)) from error

        with _translating(at.bucket, f"reading {at}"):
            return self._insist(attempt, f"reading {at}")

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        """Write a blob. One that is large is sent in parts and appears with the last of them.

        A write whose answer was lost is repeated by botocore; with a condition it then meets
        itself, and ``PreconditionFailed`` is raised for a write that did happen.
        """
        self._check_writable(at.bucket)
        _check_key(at)

        def attempt() -> str:
            try:
                return upload(self._client, self._options, at, data, content_type, condition)
            except ClientError as error:
                code = error_code(error)
                gone = isinstance(condition, IfMatch) and code == "NoSuchKey"
                if status(error) == 412 or gone:
                    raise PreconditionFailed(f"{at} is not in the state that was seen") from error
                # Stores name this conflict differently (S3: ConditionalRequestConflict, Ceph:
                # ConcurrentModification). It does not say who won: the next try finds a winner
                # or wins, and who meets conflicts only has lost the race.
                if condition is not None and status(error) == 409:
                    reason = f"another write came between ({code})"
                    raise _TryAgain(reason, at_last=PreconditionFailed) from error
                # An upload that is gone was removed, or completed by a try whose answer was
                # lost; writing all of it again does no harm to either.
                if code == "NoSuchUpload":
                    raise _TryAgain(f"another write came between ({code})") from error
                if code in DAMAGED:
                    raise _TryAgain(f"the object does not arrive whole ({code})") from error
                raise

        with _translating(at.bucket, f"writing {at}"):
            return self._insist(attempt, f"writing {at}")

    def delete(self, at: Location) -> None:
        """Remove a blob."""
        self._check_writable(at.bucket)
        _check_key(at)
        try:
            with _translating(at.bucket, f"deleting {at}"):
                self._client.delete_object(Bucket=at.bucket, Key=at.key)
        except BlobMissing:  # Amazon's store does not say so; others do
            return

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """Blobs by prefix. Objects whose keys are no key of ours are left out."""
        self._check_readable(bucket.name)
        found = []
        with _translating(bucket.name, f"listing {bucket}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket.name, Prefix=prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    try:
                        found.append(bucket.at(entry["Key"]))
                    except InvalidLocation:
                        continue
        return sorted(found)

    def _insist(self, attempt: Callable[[], T], what: str) -> T:
        for tried in range(1, TRIES):
            try:
                return attempt()
            except _TryAgain:
                self._sleep(FIRST_PAUSE * 2 ** (tried - 1))
        try:
            return attempt()
        except _TryAgain as error:
            raise error.at_last(f"{what}: {error}, {TRIES} times over") from error

    def _check_readable(self, bucket: str) -> None:
        if bucket not in self._readable:
            allowed = ", ".join(sorted(self._readable))
            raise BlobDenied(
                f"bucket {bucket!r} may not be read, only {allowed}: "
                "to allow it, add it to ALLOWED_IMAGE_BUCKETS"
            )

    def _check_writable(self, bucket: str) -> None:
        if bucket in self._writable:
            return
        self._check_readable(bucket)
        raise BlobDenied(f"bucket {bucket!r} is read-only: the worker writes to none but its own")


def _check_key(at: Location) -> None:
    try:
        at.key.encode()
    except UnicodeEncodeError:
        raise BlobDenied(f"no key in S3 can be {at.key!r}: it is not valid Unicode") from None


@contextmanager
def _translating(bucket: str, what: str) -> Iterator[None]:
    try:
        yield
    except S3_ERRORS as error:
        raise translated(error, bucket, what) from error

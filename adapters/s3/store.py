"""Port ``BlobStore`` on S3 and S3-compatible stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from botocore.exceptions import ClientError

from adapters.common.bucket_access import BucketAccess, check_key
from adapters.common.deadline import blob_deadline
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
"""Attempts at a whole read or write; in each, botocore also retries its requests."""
FIRST_PAUSE = 0.2
"""Seconds before the second attempt, doubled before each further one."""


class _TryAgain(Exception):
    """This attempt failed for a reason that may not repeat.

    Args:
        at_last: error to raise when the last attempt has failed, too.
    """

    def __init__(self, reason: str, at_last: type[Exception] = BlobUnavailable) -> None:
        super().__init__(reason)
        self.at_last = at_last


class S3BlobStore:
    """Port ``BlobStore``. May be shared by threads.

    A bucket that does not exist is ``BlobDenied``: the set-up is wrong, not the blob's name.
    Credentials that the store rejects are ``BlobUnavailable``: the task waits until the worker
    has valid ones.

    Args:
        options: endpoint, credentials and timeouts.
        readable: buckets that may be read, besides the writable ones.
        writable: buckets that may be written.
        sleep: waits that many seconds.

    Raises:
        BlobDenied: boto3's own configuration is invalid.
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
        self._access = BucketAccess("s3", readable, writable)
        self._sleep = sleep
        try:
            self._client = connect(options)
        except (*S3_ERRORS, ValueError) as error:
            raise BlobDenied(f"the S3 client could not be created: {error}") from error

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read a blob and verify its length and checksum."""
        self._access.check_readable(at.bucket)
        check_key(at)

        def attempt() -> Blob:
            try:
                return download(self._client, at, max_bytes, self._options.blob_seconds)
            except ChecksumMismatch as error:
                raise _TryAgain(str(error)) from error

        with _translating(at.bucket, f"reading {at}"):
            return self._retry(attempt, f"reading {at}")

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        """Write a blob. A large one is sent in parts and appears with the last of them.

        botocore repeats a write whose response was lost. With a condition, the repeat then
        raises ``PreconditionFailed`` although the write happened.
        """
        self._access.check_writable(at.bucket)
        check_key(at)

        def attempt() -> str:
            try:
                return upload(self._client, self._options, at, data, content_type, condition)
            except ClientError as error:
                code = error_code(error)
                gone = isinstance(condition, IfMatch) and code == "NoSuchKey"
                if status(error) == 412 or gone:
                    raise PreconditionFailed(f"{at} has changed since it was read") from error
                # Stores name this conflict differently (S3: ConditionalRequestConflict, Ceph:
                # ConcurrentModification). The winner is unknown: the next attempt meets it or
                # wins. A write that meets a conflict on every attempt has lost the race.
                if condition is not None and status(error) == 409:
                    reason = f"another write came first ({code})"
                    raise _TryAgain(reason, at_last=PreconditionFailed) from error
                # The upload was aborted, or completed by an attempt whose response was lost.
                # Writing everything again is safe in both cases.
                if code == "NoSuchUpload":
                    raise _TryAgain(f"another write came first ({code})") from error
                if code in DAMAGED:
                    raise _TryAgain(f"the object arrived incomplete ({code})") from error
                raise

        with self._within(at.bucket, f"writing {at}", len(data)):
            return self._retry(attempt, f"writing {at}")

    def delete(self, at: Location) -> None:
        """Remove a blob."""
        self._access.check_writable(at.bucket)
        check_key(at)
        try:
            with self._within(at.bucket, f"deleting {at}"):
                self._client.delete_object(Bucket=at.bucket, Key=at.key)
        except BlobMissing:  # returned by some stores, not by Amazon S3
            return

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """Blobs by prefix. Skips objects whose keys are not valid keys of the port."""
        self._access.check_readable(bucket.name)
        found = []
        with self._within(bucket.name, f"listing {bucket}/{prefix}"):
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

    @contextmanager
    def _within(self, bucket: str, what: str, size: int = 0) -> Iterator[None]:
        """Limit a call's time, and translate its errors."""
        with (
            _translating(bucket, what),
            blob_deadline(self._options.blob_seconds, what, size),
        ):
            yield

    def _retry(self, attempt: Callable[[], T], what: str) -> T:
        for tried in range(1, TRIES):
            try:
                return attempt()
            except _TryAgain:
                self._sleep(FIRST_PAUSE * 2 ** (tried - 1))
        try:
            return attempt()
        except _TryAgain as error:
            raise error.at_last(f"{what} failed {TRIES} times: {error}") from error


@contextmanager
def _translating(bucket: str, what: str) -> Iterator[None]:
    try:
        yield
    except S3_ERRORS as error:
        raise translated(error, bucket, what) from error

"""Port ``BlobStore`` on Google Cloud Storage."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, TypeVar

from google.api_core.exceptions import GoogleAPICallError, NotFound
from google.cloud.storage import Blob as GcsBlob
from google.cloud.storage.exceptions import DataCorruption
from google_crc32c import value as crc32c

from adapters.common.bucket_access import BucketAccess, check_key
from adapters.common.deadline import Deadline, blob_deadline
from adapters.gcs.client import connect, retry
from adapters.gcs.errors import GCS_ERRORS, UnexpectedResponse, no_bucket, translate
from adapters.gcs.options import GcsOptions
from application.ports import (
    Blob,
    BlobDenied,
    BlobMissing,
    BlobTooLarge,
    BlobUnavailable,
    Condition,
    IfAbsent,
    IfMatch,
)
from domain.location import Bucket, InvalidLocation, Location

T = TypeVar("T")

TRIES = 3
"""Attempts at a whole read or write; in each, the client library also retries its requests."""
FIRST_PAUSE = 0.2
"""Seconds before the second attempt, doubled before the third."""


class _TryAgain(Exception):
    """This attempt failed for a reason that may not repeat."""


class GcsBlobStore:
    """Port ``BlobStore``. May be shared by threads.

    A blob's tag is its generation. A bucket that does not exist is ``BlobDenied``: the set-up is
    wrong, not the blob's name. Credentials that Google rejects are ``BlobUnavailable``: the task
    waits until the worker has valid ones.

    Args:
        options: address, credentials and timeouts.
        readable: buckets that may be read, besides the writable ones.
        writable: buckets that may be written.
        sleep: waits that many seconds.

    Raises:
        BlobUnavailable: there are no credentials.
    """

    def __init__(
        self,
        options: GcsOptions,
        *,
        readable: Collection[str],
        writable: Collection[str],
        sleep: Callable[[float], None],
    ) -> None:
        self._access = BucketAccess("gs", readable, writable)
        self._sleep = sleep
        self._chunk_size = options.chunk_size
        self._blob_seconds = options.blob_seconds
        self._timeouts: dict[str, Any] = {
            "timeout": (options.connect_timeout, options.read_timeout),
            "retry": retry(options),
        }
        self._existing: set[str] = set()
        with _translating("connecting to Google Cloud Storage"):
            self._client = connect(options)

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read a blob and verify its CRC32C. With ``max_bytes``, checks its size first."""
        self._access.check_readable(at.bucket)

        def attempt() -> Blob:
            if max_bytes is not None:
                head = self._blob(at)
                head.reload(**self._timeouts)
                if (head.size or 0) > max_bytes:
                    raise BlobTooLarge(f"{at} has {head.size} bytes, more than {max_bytes}")
                deadline.extend(head.size or 0)
            blob, body = self._blob(at), _Body(at, max_bytes)
            blob.download_to_file(body, checksum="crc32c", **self._timeouts)
            return Blob(body.getvalue(), _generation(blob))

        what = f"reading {at}"
        with self._within(what) as deadline:
            try:
                return self._repeat(attempt, what)
            except NotFound:
                if at.bucket in self._existing or self._bucket_exists(at.bucket):
                    raise BlobMissing(f"{what}: there is no such object") from None
                raise no_bucket(at.bucket, what) from None

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        """Write a blob. A large one is sent in chunks and appears with the last of them.

        A write whose response was lost is repeated. With a condition, the repeat then raises
        ``PreconditionFailed`` although the write happened.
        """
        self._access.check_writable(at.bucket)
        what = f"writing {at}"

        def attempt() -> str:
            blob = self._blob(at)
            blob.chunk_size = self._chunk_size
            try:
                blob.upload_from_file(
                    BytesIO(data),
                    size=len(data),
                    content_type=content_type,
                    if_generation_match=_expected(condition),
                    checksum="crc32c",
                    crc32c_checksum_value=_checksum(data),
                    **self._timeouts,
                )
            except GoogleAPICallError as error:
                # 410, or 404 from an existing bucket: the upload session is gone.
                if error.code == 410 or (error.code == 404 and self._bucket_exists(at.bucket)):
                    raise _TryAgain("the upload session has ended") from error
                raise
            return _generation(blob)

        with self._within(what, len(data)):
            try:
                return self._repeat(attempt, what)
            except NotFound:
                raise no_bucket(at.bucket, what) from None

    def delete(self, at: Location) -> None:
        """Remove a blob."""
        self._access.check_writable(at.bucket)
        what = f"deleting {at}"
        with self._within(what):
            try:
                self._blob(at).delete(**self._timeouts)
            except NotFound:
                if not self._bucket_exists(at.bucket):
                    raise no_bucket(at.bucket, what) from None

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """Blobs by prefix. Skips objects whose names are not valid keys of the port."""
        self._access.check_readable(bucket.name)
        found = []
        what = f"listing {bucket}/{prefix}"
        with self._within(what):
            try:
                for blob in self._client.list_blobs(
                    bucket.name,
                    prefix=prefix,
                    fields="items(name),nextPageToken",
                    **self._timeouts,
                ):
                    try:
                        found.append(bucket.at(blob.name))
                    except InvalidLocation:
                        continue
            except NotFound:
                raise no_bucket(bucket.name, what) from None
        return sorted(found)

    @contextmanager
    def _within(self, what: str, size: int = 0) -> Iterator[Deadline]:
        """Limit a call's time, and translate its errors."""
        with _translating(what), blob_deadline(self._blob_seconds, what, size) as deadline:
            yield deadline

    def _blob(self, at: Location) -> GcsBlob:
        check_key(at)
        blob: GcsBlob = self._client.bucket(at.bucket).blob(at.key)
        return blob

    def _bucket_exists(self, bucket: str) -> bool:
        """Whether the bucket exists. Google's 404 may mean the bucket or the object."""
        try:
            list(self._client.list_blobs(bucket, max_results=1, **self._timeouts))
        except NotFound:
            return False
        self._existing.add(bucket)
        return True

    def _repeat(self, attempt: Callable[[], T], what: str) -> T:
        for tried in range(TRIES):
            try:
                return attempt()
            except (_TryAgain, DataCorruption) as error:
                cause = error
            if tried + 1 < TRIES:
                self._sleep(FIRST_PAUSE * 2**tried)
        raise BlobUnavailable(f"{what} failed {TRIES} times: {cause}") from cause


class _Body(BytesIO):
    """Receives a download with a byte limit, in case the blob has grown since."""

    def __init__(self, at: Location, max_bytes: int | None) -> None:
        super().__init__()
        self._at = at
        self._max_bytes = max_bytes

    def write(self, data: Any) -> int:
        if self._max_bytes is not None and self.tell() + len(data) > self._max_bytes:
            raise BlobTooLarge(f"{self._at} has more than {self._max_bytes} bytes")
        return super().write(data)


def _generation(blob: GcsBlob) -> str:
    if blob.generation is None:
        raise UnexpectedResponse("it has no generation")
    return str(blob.generation)


def _expected(condition: Condition | None) -> int | None:
    """The generation that a write replaces; 0: no blob."""
    match condition:
        case IfAbsent():
            return 0
        case IfMatch(etag):
            return int(etag)
    return None


def _checksum(data: bytes) -> str:
    """CRC32C as Google writes it: big-endian, in base64."""
    return base64.b64encode(crc32c(data).to_bytes(4, "big")).decode()


@contextmanager
def _translating(what: str) -> Iterator[None]:
    try:
        yield
    except GCS_ERRORS as error:
        raise translate(error, what) from error
    except (ValueError, UnicodeError) as error:  # not a valid name of a bucket or object
        raise BlobDenied(f"{what}: {error}") from error

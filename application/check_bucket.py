"""Test a bucket's access rights and conditional writes by real requests."""

from __future__ import annotations

from contextlib import suppress

from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    BlobUnavailable,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Bucket, Location

_REMEDY = "use a store that supports If-None-Match and If-Match for writes, as Amazon S3 does"


class UnfitStore(BlobDenied):
    """The store ignores write conditions, so two workers could train the same job."""


def check_bucket(blobs: BlobStore, probe: Location, *, write: bool) -> str:
    """Try the requests that a worker makes to a bucket, and describe those that succeeded.

    Args:
        probe: an unused key; with ``write`` a blob is stored there for a moment.
        write: also try to write with and without conditions, and to delete.

    Raises:
        UnfitStore, BlobDenied, BlobUnavailable: the bucket cannot be used; the text has the
            remedy.
    """
    bucket = Bucket(probe.bucket, probe.scheme)
    blobs.list(bucket, probe.key)
    with suppress(BlobMissing, BlobTooLarge):
        blobs.get(probe, max_bytes=0)
    if not write:
        return f"bucket {bucket} can be read"
    check_conditions(blobs, probe)
    return f"bucket {bucket} can be read and written, conditional writes work"


def check_conditions(blobs: BlobStore, probe: Location) -> None:
    """Try writes whose conditions hold, and writes whose conditions do not. Raises as
    ``check_bucket``.
    """
    try:
        _write(blobs, probe)
    except Exception:
        with suppress(BlobDenied, BlobUnavailable):
            blobs.delete(probe)
        raise
    blobs.delete(probe)


def _write(blobs: BlobStore, probe: Location) -> None:
    blobs.delete(probe)
    etag = ""
    try:
        etag = blobs.put(probe, b"first", content_type="text/plain", condition=IfAbsent())
        if blobs.get(probe, max_bytes=1024).data != b"first":
            raise BlobUnavailable(f"{probe} was read back with other content: check the store")
        blobs.put(probe, b"second", content_type="text/plain", condition=IfMatch(etag))
    except (PreconditionFailed, BlobMissing):
        if _compares_without_quotes(blobs, probe, etag):
            raise UnfitStore(
                f"bucket {probe.bucket!r}: this store compares ETags without quotes, as Ceph "
                f"before 19 does, so no lease can be renewed: {_REMEDY}"
            ) from None
        raise BlobUnavailable(
            f"{probe} was changed by another client, or a response was lost: run the check again"
        ) from None
    for condition in (IfAbsent(), IfMatch(etag)):
        try:
            blobs.put(probe, b"third", content_type="text/plain", condition=condition)
        except PreconditionFailed:
            continue
        raise UnfitStore(
            f"bucket {probe.bucket!r}: the store writes although the condition {condition} does "
            f"not hold, so two workers could train one job: {_REMEDY}"
        )


def _compares_without_quotes(blobs: BlobStore, probe: Location, etag: str) -> bool:
    """Whether the store matches ``etag`` only without its quotes (RFC 9110, 8.8.3)."""
    bare = etag.strip('"')
    if bare == etag:
        return False
    try:
        blobs.put(probe, b"second", content_type="text/plain", condition=IfMatch(bare))
    except PreconditionFailed:
        return False
    return True

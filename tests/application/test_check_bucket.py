"""The bucket check detects stores that a worker cannot use."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.memory import MemoryBlobStore
from application.check_bucket import UnfitStore, check_bucket
from application.ports import Blob, BlobDenied, BlobUnavailable, Condition, IfAbsent, IfMatch
from domain.location import Location

PROBE = Location("models", "jobs/check/worker-1")


@pytest.mark.parametrize("ignored", [IfAbsent, IfMatch])
def test_a_store_that_ignores_a_condition_is_rejected_and_left_clean(
    ignored: type[Condition],
) -> None:
    class Careless(MemoryBlobStore):
        def put(self, at: Location, data: bytes, *, condition: Any = None, **how: Any) -> str:
            kept = None if isinstance(condition, ignored) else condition
            return super().put(at, data, condition=kept, **how)

    blobs = Careless()
    with pytest.raises(UnfitStore, match="two workers could train one job"):
        check_bucket(blobs, PROBE, write=True)
    assert blobs.blobs == {}


def test_a_store_that_compares_etags_without_quotes_is_named() -> None:
    class Quoting(MemoryBlobStore):
        def get(self, at: Location, **how: Any) -> Blob:
            found = super().get(at, **how)
            return Blob(found.data, f'"{found.etag}"')

        def put(self, at: Location, data: bytes, **how: Any) -> str:
            return f'"{super().put(at, data, **how)}"'

    blobs = Quoting()
    with pytest.raises(UnfitStore, match="without quotes, as Ceph before 19"):
        check_bucket(blobs, PROBE, write=True)
    assert blobs.blobs == {}


def test_a_store_that_reads_back_something_else_is_rejected() -> None:
    class Forgetful(MemoryBlobStore):
        def get(self, at: Location, **how: Any) -> Blob:
            return Blob(b"what lay there before", super().get(at, **how).etag)

    with pytest.raises(BlobUnavailable, match="was read back"):
        check_bucket(Forgetful(), PROBE, write=True)


def test_two_concurrent_checks_are_told_to_check_again() -> None:
    class Shared(MemoryBlobStore):
        def delete(self, at: Location) -> None:
            self.put(at, b"theirs")

    with pytest.raises(BlobUnavailable, match="check again"):
        check_bucket(Shared(), PROBE, write=True)


def test_a_probe_that_vanishes_is_told_to_check_again() -> None:
    class Emptied(MemoryBlobStore):
        def put(self, at: Location, data: bytes, **how: Any) -> str:
            etag = super().put(at, data, **how)
            self.delete(at)
            return etag

    with pytest.raises(BlobUnavailable, match="check again"):
        check_bucket(Emptied(), PROBE, write=True)


def test_a_bucket_that_may_be_listed_and_not_read_is_rejected() -> None:
    class Unreadable(MemoryBlobStore):
        def get(self, at: Location, **_how: Any) -> Blob:
            raise BlobDenied(f"403 for {at}")

    with pytest.raises(BlobDenied):
        check_bucket(Unreadable(), PROBE, write=False)


@pytest.mark.parametrize("write", [False, True])
def test_leftovers_of_an_aborted_check_do_not_matter(write: bool) -> None:
    blobs = MemoryBlobStore()
    blobs.put(PROBE, b"first")
    assert "bucket s3://models can be read" in check_bucket(blobs, PROBE, write=write)
    assert (PROBE in blobs.blobs) is not write


@pytest.mark.parametrize("error", [BlobDenied("deleting"), BlobUnavailable("deleting")])
def test_a_probe_that_cannot_be_deleted_does_not_hide_why_the_check_failed(
    error: Exception,
) -> None:
    class Broken(MemoryBlobStore):
        def put(self, at: Location, data: bytes, **how: Any) -> str:
            self.delete = self.fail  # type: ignore[method-assign,assignment]  # a double of one call
            raise BlobDenied("writing")

        def fail(self, _at: Location) -> None:
            raise error

    with pytest.raises(BlobDenied, match="writing"):
        check_bucket(Broken(), PROBE, write=True)

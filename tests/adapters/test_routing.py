"""Routing of a location to its store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapters.memory import MemoryBlobStore
from adapters.routing import BlobStoreByScheme
from application.ports import BlobDenied, BlobMissing, BlobStore, BlobUnavailable
from domain.location import Bucket, Location

AMAZON, GOOGLE = Location("media", "a", "s3"), Location("media", "a", "gs")


def test_each_blob_is_in_the_store_of_its_scheme() -> None:
    amazon, google = MemoryBlobStore(), MemoryBlobStore()
    blobs = BlobStoreByScheme({"s3": lambda: amazon, "gs": lambda: google})
    blobs.put(AMAZON, b"amazon's")
    blobs.put(GOOGLE, b"google's")
    assert blobs.get(AMAZON).data == amazon.get(AMAZON).data == b"amazon's"
    assert blobs.get(GOOGLE).data == google.get(GOOGLE).data == b"google's"
    assert blobs.list(Bucket("media"), "") == [AMAZON]
    assert blobs.list(Bucket("media", "gs"), "") == [GOOGLE]
    blobs.delete(AMAZON)
    with pytest.raises(BlobMissing):
        blobs.get(AMAZON)


def test_a_store_is_opened_lazily_and_once() -> None:
    opened: list[str] = []

    def opening(scheme: str) -> Callable[[], BlobStore]:
        def open_store() -> BlobStore:
            opened.append(scheme)
            return MemoryBlobStore()

        return open_store

    blobs = BlobStoreByScheme({scheme: opening(scheme) for scheme in ("s3", "gs")})
    for _ in range(2):
        blobs.put(AMAZON, b"1")
    assert opened == ["s3"]


def test_a_store_that_cannot_be_opened_is_tried_again() -> None:
    ready = False

    def open_store() -> BlobStore:
        if not ready:
            raise BlobUnavailable("no credentials")
        return MemoryBlobStore()

    blobs = BlobStoreByScheme({"gs": open_store})
    with pytest.raises(BlobUnavailable):
        blobs.put(GOOGLE, b"1")
    ready = True
    blobs.put(GOOGLE, b"1")


def test_a_store_that_is_not_configured_is_denied() -> None:
    blobs = BlobStoreByScheme({"s3": MemoryBlobStore})
    with pytest.raises(BlobDenied, match=r"gs:// is not allowed, only s3://: .*ALLOWED_IMAGE"):
        blobs.get(GOOGLE)

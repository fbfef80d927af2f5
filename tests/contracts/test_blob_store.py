"""The contract of every blob store. For a new adapter add a parameter to ``harness``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.filesystem import FileBlobStore
from adapters.gcs.options import GcsOptions
from adapters.gcs.store import GcsBlobStore
from adapters.memory import MemoryBlobStore
from adapters.routing import BlobStoreByScheme
from adapters.s3.options import S3Options
from adapters.s3.store import S3BlobStore
from application.ports import (
    Blob,
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    Condition,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Bucket, Location
from tests.services.gcs import Emulator, running_gcs
from tests.services.s3 import ACCESS_KEY, REGION, SECRET_KEY, Server, running_s3

WRITERS = 8


@dataclass(frozen=True)
class Harness:
    """A store with two empty buckets."""

    blobs: BlobStore
    bucket: str
    other_bucket: str
    scheme: str = "s3"

    def at(self, key: str) -> Location:
        return Location(self.bucket, key, self.scheme)

    def list(self, prefix: str) -> list[Location]:
        return self.blobs.list(Bucket(self.bucket, self.scheme), prefix)


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with running_s3() as service:
        yield service


@pytest.fixture(scope="module")
def gcs() -> Iterator[Emulator]:
    with running_gcs() as emulator:
        yield emulator


@pytest.fixture(
    params=[
        "memory",
        "filesystem",
        "routing",
        pytest.param("s3", marks=pytest.mark.integration),
        pytest.param("gcs", marks=pytest.mark.integration),
    ]
)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    if request.param == "memory":
        return Harness(MemoryBlobStore(), "first", "second")
    if request.param == "routing":
        return Harness(BlobStoreByScheme({"s3": MemoryBlobStore}), "first", "second")
    if request.param == "s3":
        return in_s3(request.getfixturevalue("s3"))
    if request.param == "gcs":
        return in_gcs(request.getfixturevalue("gcs"))
    folders = {name: tmp_path / name for name in ("first", "second")}
    return Harness(FileBlobStore(folders), "first", "second")


def in_s3(service: Server) -> Harness:
    options = S3Options(
        endpoint_url=service.url,
        region=REGION,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
    )
    buckets = service.new_bucket(), service.new_bucket()
    blobs = S3BlobStore(options, readable=["no-such-bucket"], writable=buckets, sleep=time.sleep)
    return Harness(blobs, *buckets)


def in_gcs(emulator: Emulator) -> Harness:
    options = GcsOptions(emulator_url=emulator.url)
    buckets = emulator.new_bucket(), emulator.new_bucket()
    blobs = GcsBlobStore(options, readable=["no-such-bucket"], writable=buckets, sleep=time.sleep)
    return Harness(blobs, *buckets, scheme="gs")


def concurrently(write: Callable[[int], str]) -> list[int]:
    """Start all writers at the same moment. Returns the indices of those that succeeded."""
    together = threading.Barrier(WRITERS)

    def one(number: int) -> bool:
        together.wait(30)
        try:
            write(number)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        return [number for number, won in enumerate(pool.map(one, range(WRITERS))) if won]


def test_a_blob_reads_back_as_written_with_the_tag_that_put_returned(harness: Harness) -> None:
    data = bytes(range(256)) * 5
    etag = harness.blobs.put(harness.at("a/b/c.bin"), data)
    assert harness.blobs.get(harness.at("a/b/c.bin")) == Blob(data, etag)


@pytest.mark.parametrize(
    "key", ["empty", "a b.txt", "Grüße/画.png", "a%20b+c&d=e", ".hidden", "x.tmp", "~", "C:x"]
)
def test_any_key_and_an_empty_blob_are_accepted(harness: Harness, key: str) -> None:
    etag = harness.blobs.put(harness.at(key), b"")
    assert harness.blobs.get(harness.at(key)) == Blob(b"", etag)
    assert harness.list("") == [harness.at(key)]


def test_an_unconditional_write_replaces_the_blob_and_its_tag(harness: Harness) -> None:
    first = harness.blobs.put(harness.at("a"), b"long first content")
    second = harness.blobs.put(harness.at("a"), b"second")
    assert first != second
    assert harness.blobs.get(harness.at("a")) == Blob(b"second", second)


def test_an_absent_blob_is_missing(harness: Harness) -> None:
    harness.blobs.put(harness.at("a/b"), b"1")
    for key in ("c", "a", "a/b/c", "a/bb"):
        with pytest.raises(BlobMissing):
            harness.blobs.get(harness.at(key))


def test_the_same_key_in_another_bucket_is_another_blob(harness: Harness) -> None:
    harness.blobs.put(harness.at("a"), b"1")
    with pytest.raises(BlobMissing):
        harness.blobs.get(Location(harness.other_bucket, "a", harness.scheme))
    assert harness.blobs.list(Bucket(harness.other_bucket, harness.scheme), "") == []


def test_a_bucket_that_does_not_exist_is_missing_or_denied(harness: Harness) -> None:
    with pytest.raises((BlobMissing, BlobDenied)):
        harness.blobs.get(Location("no-such-bucket", "a", harness.scheme))


def test_the_size_limit_of_a_read_is_inclusive(harness: Harness) -> None:
    harness.blobs.put(harness.at("a"), b"12345")
    assert harness.blobs.get(harness.at("a"), max_bytes=5).data == b"12345"
    with pytest.raises(BlobTooLarge):
        harness.blobs.get(harness.at("a"), max_bytes=4)


def test_a_missing_blob_is_missing_whatever_its_size_may_be(harness: Harness) -> None:
    with pytest.raises(BlobMissing):
        harness.blobs.get(harness.at("a"), max_bytes=0)


def test_only_if_absent_writes_once(harness: Harness) -> None:
    etag = harness.blobs.put(harness.at("a"), b"1", condition=IfAbsent())
    with pytest.raises(PreconditionFailed):
        harness.blobs.put(harness.at("a"), b"2", condition=IfAbsent())
    assert harness.blobs.get(harness.at("a")) == Blob(b"1", etag)


def test_only_if_absent_writes_after_a_deletion(harness: Harness) -> None:
    harness.blobs.put(harness.at("a"), b"1")
    harness.blobs.delete(harness.at("a"))
    harness.blobs.put(harness.at("a"), b"2", condition=IfAbsent())
    assert harness.blobs.get(harness.at("a")).data == b"2"


def test_only_if_unchanged_follows_the_tag_from_write_to_write(harness: Harness) -> None:
    etag = harness.blobs.put(harness.at("a"), b"1")
    newer = harness.blobs.put(harness.at("a"), b"2", condition=IfMatch(etag))
    with pytest.raises(PreconditionFailed):
        harness.blobs.put(harness.at("a"), b"3", condition=IfMatch(etag))
    assert harness.blobs.get(harness.at("a")) == Blob(b"2", newer)


def test_only_if_unchanged_takes_the_tag_of_a_read(harness: Harness) -> None:
    harness.blobs.put(harness.at("a"), b"1")
    seen = harness.blobs.get(harness.at("a")).etag
    harness.blobs.put(harness.at("a"), b"2", condition=IfMatch(seen))
    assert harness.blobs.get(harness.at("a")).data == b"2"


def test_only_if_unchanged_does_not_recreate_a_deleted_blob(harness: Harness) -> None:
    etag = harness.blobs.put(harness.at("a"), b"1")
    harness.blobs.delete(harness.at("a"))
    with pytest.raises(PreconditionFailed):
        harness.blobs.put(harness.at("a"), b"2", condition=IfMatch(etag))
    assert harness.list("") == []


@pytest.mark.parametrize("there", [False, True])
def test_of_writers_with_one_condition_exactly_one_wins(harness: Harness, there: bool) -> None:
    for turn in range(5):
        at = harness.at(f"contested/{turn}")
        condition: Condition = IfAbsent()
        if there:
            condition = IfMatch(harness.blobs.put(at, b"before"))

        def write(number: int, at: Location = at, condition: Condition = condition) -> str:
            return harness.blobs.put(at, b"by %d" % number, condition=condition)

        winners = concurrently(write)
        assert len(winners) == 1
        assert harness.blobs.get(at).data == b"by %d" % winners[0]


def test_no_increment_of_a_contested_counter_is_lost(harness: Harness) -> None:
    at = harness.at("counter")
    harness.blobs.put(at, b"0")

    def increment(_number: int) -> None:
        while True:
            seen = harness.blobs.get(at)
            try:
                harness.blobs.put(at, b"%d" % (int(seen.data) + 1), condition=IfMatch(seen.etag))
            except PreconditionFailed:
                continue
            return

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(increment, range(3 * WRITERS)))
    assert harness.blobs.get(at).data == b"%d" % (3 * WRITERS)


def test_a_read_is_atomic_and_matches_its_tag(harness: Harness) -> None:
    at = harness.at("busy")
    contents = [bytes([letter]) * 300_000 for letter in b"abcd"]
    written: dict[str, bytes] = {}
    over = threading.Event()

    def write(content: bytes) -> None:
        written[harness.blobs.put(at, content)] = content

    def keep_writing() -> None:
        while not over.is_set():
            for content in contents:
                write(content)

    write(contents[0])
    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        found = [harness.blobs.get(at) for _ in range(40)]
    finally:
        over.set()
        writer.join()
    assert all(written[blob.etag] == blob.data for blob in found)


def test_delete_removes_one_blob_and_accepts_a_missing_one(harness: Harness) -> None:
    for key in ("a/b", "a/c", "d/e"):
        harness.blobs.put(harness.at(key), b"1")
    harness.blobs.delete(harness.at("a/b"))
    harness.blobs.delete(harness.at("a/b"))
    harness.blobs.delete(harness.at("d/e"))
    harness.blobs.delete(harness.at("never/there"))
    assert harness.list("") == [harness.at("a/c")]


def test_list_returns_the_keys_with_the_prefix_in_order(harness: Harness) -> None:
    keys = ["b", "a/2", "a/10", "a.txt", "ab/c", "a/1/x", "A"]
    for key in keys:
        harness.blobs.put(harness.at(key), b"1")

    def listed(prefix: str) -> list[str]:
        return [at.key for at in harness.list(prefix)]

    assert listed("") == ["A", "a.txt", "a/1/x", "a/10", "a/2", "ab/c", "b"]
    assert listed("a/") == ["a/1/x", "a/10", "a/2"]
    assert listed("a/1") == ["a/1/x", "a/10"]
    assert listed("a") == ["a.txt", "a/1/x", "a/10", "a/2", "ab/c"]
    assert listed("z") == []
    assert {at.bucket for at in harness.list("")} == {harness.bucket}


def test_an_untouched_bucket_is_empty(harness: Harness) -> None:
    assert harness.list("") == []

"""Exactly one of several conditional writers succeeds, and each gets its own result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from adapters.s3.options import MIB, S3Options
from adapters.s3.store import TRIES
from application.fenced_blob import FencedBlob, Superseded, read_json
from application.ports import (
    BlobUnavailable,
    Condition,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Location
from tests.integration.s3.world import Store, hits, make
from tests.services.http_faults import Rule, internal_error, s3_error
from tests.services.http_proxy import FaultyProxy

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("there", [False, True])
def test_exactly_one_of_eight_writers_with_their_own_stores_wins(
    options: S3Options, bucket: str, there: bool
) -> None:
    stores = [make(replace(options, read_timeout=30), bucket) for _ in range(8)]
    at = Location(bucket, "contested")
    condition: Condition = IfAbsent()
    if there:
        condition = IfMatch(stores[0].blobs.put(at, b"before"))

    def write(number: int) -> bool:
        try:
            stores[number].blobs.put(at, b"by %d" % number, condition=condition)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert stores[0].blobs.get(at).data == b"by %d" % won.index(True)


@pytest.mark.parametrize("size", [10, 7 * MIB])
def test_a_conflict_is_retried_and_the_write_succeeds(
    store: Store, proxy: FaultyProxy, size: int
) -> None:
    conflict = s3_error("ConditionalRequestConflict", 409, method="PUT|POST", times=1)
    proxy.rules(replace(conflict, target="uploadId=" if size > MIB else "", skip=2 * (size > MIB)))
    store.blobs.put(store.at("a"), bytes(size), condition=IfAbsent())
    assert hits(proxy) == 1
    assert store.pauses == [0.2]
    assert store.blobs.get(store.at("a")).data == bytes(size)


def test_a_conflict_with_the_writer_who_won_ends_as_a_failed_condition(
    store: Store, proxy: FaultyProxy
) -> None:
    store.blobs.put(store.at("a"), b"the winner's")
    proxy.rules(s3_error("ConditionalRequestConflict", 409, method="PUT", times=1))
    with pytest.raises(PreconditionFailed):
        store.blobs.put(store.at("a"), b"the loser's", condition=IfAbsent())
    assert store.blobs.get(store.at("a")).data == b"the winner's"


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "ConcurrentModification"])
def test_repeated_conflicts_are_a_failed_condition(
    store: Store, proxy: FaultyProxy, code: str
) -> None:
    proxy.rules(s3_error(code, 409, method="PUT"))
    with pytest.raises(PreconditionFailed, match="another write came first"):
        store.blobs.put(store.at("a"), b"1", condition=IfAbsent())
    assert hits(proxy) == TRIES
    assert store.pauses == [0.2, 0.4]


def test_a_conflict_of_a_write_without_a_condition_is_the_stores_fault(
    store: Store, proxy: FaultyProxy
) -> None:
    proxy.rules(s3_error("OperationAborted", 409, method="PUT"))
    with pytest.raises(BlobUnavailable, match="OperationAborted"):
        store.blobs.put(store.at("a"), b"1")


def test_a_fenced_write_with_a_lost_response_is_recognised_as_our_own(
    store: Store, proxy: FaultyProxy
) -> None:
    fenced = FencedBlob(store.blobs, store.at("lease"))
    assert fenced.read(dict) is None
    for turn in range(3):
        proxy.rules(Rule(fault="reset_after", method="PUT", times=1))
        fenced.write({"turn": turn})
        assert hits(proxy) == 1
        assert [seen.status for seen in proxy.seen() if seen.method == "PUT"] == [None, 412]
    proxy.clear()
    assert read_json(store.blobs, store.at("lease"), dict) == {"revision": 3, "turn": 2}


def test_a_fenced_write_in_doubt_is_resolved_by_the_next_one(
    store: Store, proxy: FaultyProxy
) -> None:
    fenced = FencedBlob(store.blobs, store.at("lease"))
    fenced.write({"turn": 1})
    proxy.rules(Rule(fault="reset_after", method="PUT", times=1), internal_error())
    with pytest.raises(BlobUnavailable):
        fenced.write({"turn": 2})
    proxy.clear()
    assert read_json(store.blobs, store.at("lease"), dict) == {"revision": 2, "turn": 2}
    fenced.write({"turn": 3})
    assert read_json(store.blobs, store.at("lease"), dict) == {"revision": 3, "turn": 3}


def test_a_fenced_write_after_another_workers_is_superseded(store: Store) -> None:
    ours, theirs = (FencedBlob(store.blobs, store.at("lease")) for _ in range(2))
    ours.write({"by": "us"})
    with pytest.raises(Superseded):
        theirs.write({"by": "them"})
    store.blobs.delete(store.at("lease"))
    with pytest.raises(Superseded):
        ours.write({"by": "us again"})


@pytest.mark.parametrize("seed", [1, 2])
def test_no_fenced_write_is_lost_or_done_twice_whatever_the_network_does(
    options: S3Options, bucket: str, proxy: FaultyProxy, seed: int
) -> None:
    """Writers append to one list; after an uncertain write they read it again."""
    proxy.rules(
        Rule(fault="reset_after", probability=0.15),
        Rule(fault="reset_before", probability=0.1),
        Rule(fault="cut", method="GET", probability=0.1),
        internal_error(probability=0.1),
        seed=seed,
    )
    stores = [make(replace(options, read_timeout=30), bucket) for _ in range(4)]

    def add(fenced: FencedBlob, entry: str) -> None:
        while True:
            try:
                entries = fenced.read(lambda record: list(record["entries"])) or []
                if entry in entries:
                    return
                fenced.write({"entries": [*entries, entry]})
            except (Superseded, BlobUnavailable):
                continue

    def work(number: int) -> None:
        fenced = FencedBlob(stores[number].blobs, Location(bucket, "list"))
        for turn in range(6):
            add(fenced, f"{number}-{turn}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert hits(proxy) > 10
    proxy.clear()
    record = read_json(stores[0].blobs, Location(bucket, "list"), dict)
    assert record is not None
    assert sorted(record["entries"]) == [f"{n}-{turn}" for n in range(4) for turn in range(6)]

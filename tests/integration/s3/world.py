"""A store under test, behind a fault-injecting proxy."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.s3.options import S3Options
from adapters.s3.store import S3BlobStore
from domain.location import Location
from tests.services.http_proxy import FaultyProxy

TOKEN = "a-session-token-of-the-tests"


@dataclass
class Store:
    """The store under test, behind the proxy, and the seconds that it slept."""

    blobs: S3BlobStore
    bucket: str
    pauses: list[float]

    def at(self, key: str) -> Location:
        return Location(self.bucket, key)


def make(options: S3Options, bucket: str, *readable: str) -> Store:
    pauses: list[float] = []
    blobs = S3BlobStore(options, readable=readable, writable=[bucket], sleep=pauses.append)
    return Store(blobs, bucket, pauses)


def hits(proxy: FaultyProxy) -> int:
    return sum(seen.fault is not None for seen in proxy.seen())

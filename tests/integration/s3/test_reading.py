"""Reads return exactly what was stored, or fail."""

from __future__ import annotations

import gzip
import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import requests
from botocore.response import StreamingBody
from urllib3.exceptions import SSLError

from adapters.s3.download import ChecksumMismatch, download
from adapters.s3.options import MIB
from adapters.s3.store import TRIES
from application.ports import (
    BlobTooLarge,
    BlobUnavailable,
)
from domain.location import Location
from tests.integration.s3.world import Store, hits
from tests.services.http_faults import Rule, s3_error
from tests.services.http_proxy import FaultyProxy

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.integration


def test_a_too_large_object_is_rejected_by_its_headers(
    store: Store, proxy: FaultyProxy, direct: S3Client
) -> None:
    direct.upload_fileobj(io.BytesIO(bytes(48 * MIB)), store.bucket, "huge")
    with pytest.raises(BlobTooLarge, match=str(48 * MIB)):
        store.blobs.get(store.at("huge"), max_bytes=10 * MIB)
    (seen,) = proxy.seen()
    assert seen.status == 200
    # What the sockets hold in between is all that left the proxy.
    assert seen.sent < 16 * MIB


@pytest.mark.parametrize("fault", ["cut", "corrupt"])
@pytest.mark.parametrize("kind", ["checksum", "md5", "parts"])
def test_a_damaged_body_is_read_again_and_never_returned(
    store: Store, proxy: FaultyProxy, direct: S3Client, fault: Any, kind: str
) -> None:
    data = b"image" * (MIB if kind == "parts" else 100)
    if kind == "md5":
        url = direct.generate_presigned_url("put_object", {"Bucket": store.bucket, "Key": "a"})
        requests.put(url, data, timeout=30).raise_for_status()
        head = direct.head_object(Bucket=store.bucket, Key="a", ChecksumMode="ENABLED")
        assert not any(name.startswith("Checksum") for name in head)
    else:
        store.blobs.put(store.at("a"), data)
    proxy.rules(Rule(fault=fault, method="GET", times=TRIES - 1))
    assert store.blobs.get(store.at("a")).data == data
    assert hits(proxy) == TRIES - 1

    proxy.rules(Rule(fault=fault, method="GET"))
    with pytest.raises(BlobUnavailable, match=rf"{store.bucket}/a.* {TRIES} times"):
        store.blobs.get(store.at("a"))
    assert hits(proxy) == TRIES


def test_an_upload_damaged_in_transit_is_sent_again(store: Store, proxy: FaultyProxy) -> None:
    proxy.rules(s3_error("BadDigest", 400, method="PUT", times=1))
    store.blobs.put(store.at("a"), b"1")
    assert store.blobs.get(store.at("a")).data == b"1"
    assert hits(proxy) == 1


def test_a_body_with_a_truncated_tls_stream_is_incomplete() -> None:
    class Raw(io.BytesIO):
        def read(self, amount: int | None = -1) -> bytes:
            raise SSLError("bad record mac")

    response = {"Body": StreamingBody(Raw(), 10), "ContentLength": 10}
    client: Any = SimpleNamespace(get_object=lambda **_arguments: response)
    with pytest.raises(ChecksumMismatch, match="bad record mac"):
        download(client, Location("bucket", "a"), None)


def test_an_object_that_was_stored_as_gzip_is_unpacked(store: Store, direct: S3Client) -> None:
    def stored(key: str, body: bytes) -> Location:
        direct.put_object(Bucket=store.bucket, Key=key, Body=body, ContentEncoding="gzip")
        return store.at(key)

    image = b"image" * 1000
    packed = stored("packed", gzip.compress(image))
    assert store.blobs.get(packed).data == image
    assert store.blobs.get(packed, max_bytes=len(image)).data == image
    with pytest.raises(BlobTooLarge):
        store.blobs.get(packed, max_bytes=len(image) - 1)
    assert store.blobs.get(stored("not packed", image)).data == image


def test_truncated_gzip_is_never_returned(store: Store, direct: S3Client) -> None:
    body = gzip.compress(b"image" * 1000)[:-10]
    direct.put_object(Bucket=store.bucket, Key="a", Body=body, ContentEncoding="gzip")
    with pytest.raises(BlobUnavailable):
        store.blobs.get(store.at("a"))

"""The objects in the bucket after a write."""

from __future__ import annotations

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from adapters.s3.options import MIB, S3Options
from application.ports import (
    Blob,
    BlobDenied,
    BlobUnavailable,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Bucket
from tests.integration.s3.world import Store, hits, make
from tests.services.http_faults import Rule, internal_error, s3_error
from tests.services.http_proxy import FaultyProxy

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.integration


def test_an_object_is_stored_with_its_content_type_and_a_sha_256_that_s3_knows(
    store: Store, direct: S3Client
) -> None:
    data = b"weights"
    etag = store.blobs.put(store.at("a.json"), data, content_type="application/json")
    head = direct.head_object(Bucket=store.bucket, Key="a.json", ChecksumMode="ENABLED")
    assert head["ContentType"] == "application/json"
    assert head["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert head["ETag"] == etag


def test_a_large_object_is_a_multipart_upload_and_reads_back_whole(
    store: Store, proxy: FaultyProxy, direct: S3Client
) -> None:
    data = bytes(range(256)) * (11 * MIB // 256) + b"the end"
    etag = store.blobs.put(store.at("large"), data, content_type="application/x-large")
    parts = [seen for seen in proxy.seen() if "partNumber" in seen.target]
    assert len(parts) == 3
    assert all("x-amz-checksum-sha256" in seen.headers for seen in parts)
    assert etag.endswith('-3"')
    assert store.blobs.get(store.at("large")) == Blob(data, etag)
    head = direct.head_object(Bucket=store.bucket, Key="large", ChecksumMode="ENABLED")
    assert head["ContentType"] == "application/x-large"
    assert head["ChecksumSHA256"]
    assert head["Metadata"]["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("broken", ["partNumber=2", r"\?uploadId="])
def test_a_failed_upload_leaves_neither_object_nor_parts(
    store: Store, proxy: FaultyProxy, direct: S3Client, broken: str
) -> None:
    store.blobs.put(store.at("large"), b"before")
    proxy.rules(internal_error(target=broken, method="PUT|POST"))
    with pytest.raises(BlobUnavailable):
        store.blobs.put(store.at("large"), bytes(11 * MIB))
    assert hits(proxy) > 0
    proxy.clear()
    assert store.blobs.get(store.at("large")).data == b"before"
    assert "Uploads" not in direct.list_multipart_uploads(Bucket=store.bucket)


def test_a_multipart_upload_keeps_its_condition(store: Store, direct: S3Client) -> None:
    data = bytes(7 * MIB)
    at = store.at("large")
    etag = store.blobs.put(at, data, condition=IfAbsent())
    newer = store.blobs.put(at, data + b"2", condition=IfMatch(etag))
    for condition in (IfAbsent(), IfMatch(etag)):
        with pytest.raises(PreconditionFailed):
            store.blobs.put(at, data + b"3", condition=condition)
    assert store.blobs.get(at) == Blob(data + b"2", newer)
    assert "Uploads" not in direct.list_multipart_uploads(Bucket=store.bucket)


def test_a_multipart_upload_completed_with_a_lost_response_is_written_again(
    store: Store, proxy: FaultyProxy
) -> None:
    proxy.rules(
        Rule(fault="reset_after", target="uploadId=", method="POST", times=1),
        s3_error("NoSuchUpload", 404, target="uploadId=", method="POST", times=1),
    )
    data = bytes(7 * MIB)
    store.blobs.put(store.at("large"), data)
    assert hits(proxy) == 2
    assert store.blobs.get(store.at("large")).data == data


def test_unusual_keys_are_sent_unchanged(store: Store, direct: S3Client) -> None:
    keys = sorted(
        ["a b+c&d=e%20?f#g;h", "'\"<>|*:", "Grüße/画 🎨.png", "-", "~/.~", "日本語.webp"]
    )
    for key in keys:
        store.blobs.put(store.at(key), key.encode())
    assert [store.blobs.get(store.at(key)).data.decode() for key in keys] == keys
    assert [at.key for at in store.blobs.list(Bucket(store.bucket), "")] == keys
    listed = direct.list_objects_v2(Bucket=store.bucket)["Contents"]
    assert sorted(entry["Key"] for entry in listed) == keys
    for key in keys:
        store.blobs.delete(store.at(key))
    assert store.blobs.list(Bucket(store.bucket), "") == []


def test_a_key_that_is_not_unicode_is_denied_and_not_sent(
    store: Store, proxy: FaultyProxy
) -> None:
    at = store.at("lone \ud800 surrogate")
    for access in (
        lambda: store.blobs.get(at),
        lambda: store.blobs.put(at, b"1"),
        lambda: store.blobs.delete(at),
    ):
        with pytest.raises(BlobDenied, match="Unicode"):
            access()
    assert proxy.seen() == []


def test_a_list_has_every_page_and_skips_invalid_keys(
    options: S3Options, bucket: str, direct: S3Client
) -> None:
    store = make(replace(options, read_timeout=30), bucket)  # the service is busy with the pages

    def write(number: int) -> None:
        direct.put_object(Bucket=store.bucket, Key=f"many/{number:04}", Body=b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(1005)))
    for strange in ("many//double", "many/folder/", "many/../up", "many/back\\slash"):
        direct.put_object(Bucket=store.bucket, Key=strange, Body=b"")
    listed = store.blobs.list(Bucket(store.bucket), "many/")
    assert [at.key for at in listed] == [f"many/{number:04}" for number in range(1005)]

"""Which buckets may be read and written, and by how many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from adapters.s3.options import S3Options
from application.ports import (
    BlobDenied,
)
from domain.location import Bucket, Location
from tests.integration.s3.world import Store, make
from tests.services.http_proxy import FaultyProxy

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.integration


def test_a_bucket_off_the_list_is_denied_without_a_request(
    store: Store, proxy: FaultyProxy
) -> None:
    at = Location("strangers", "a")
    for access in (
        lambda: store.blobs.get(at),
        lambda: store.blobs.put(at, b"1"),
        lambda: store.blobs.delete(at),
        lambda: store.blobs.list(Bucket("strangers"), ""),
    ):
        with pytest.raises(BlobDenied, match=r"s3://strangers.*ALLOWED_IMAGE_BUCKETS"):
            access()
    assert proxy.seen() == []


def test_training_images_may_be_read_and_not_written(
    store: Store, proxy: FaultyProxy, direct: S3Client
) -> None:
    direct.put_object(Bucket="images", Key="a.png", Body=b"image")
    at = Location("images", "a.png")
    assert store.blobs.get(at).data == b"image"
    assert store.blobs.list(Bucket("images"), "a") == [at]
    proxy.clear()
    for access in (lambda: store.blobs.put(at, b"1"), lambda: store.blobs.delete(at)):
        with pytest.raises(BlobDenied, match="read-only"):
            access()
    assert proxy.seen() == []


def test_many_threads_share_one_store(options: S3Options, bucket: str) -> None:
    store = make(replace(options, read_timeout=30), bucket)

    def there_and_back(number: int) -> bool:
        data = b"%d" % number * 1000
        store.blobs.put(store.at(f"{number}"), data)
        return store.blobs.get(store.at(f"{number}")).data == data

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(there_and_back, range(100)))

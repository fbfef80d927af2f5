"""The bucket check against S3."""

from __future__ import annotations

import pytest

from application.check_bucket import check_bucket
from application.ports import BlobDenied
from domain.location import Bucket, Location
from tests.integration.s3.world import Store
from tests.services.http_faults import Rule, access_denied
from tests.services.http_proxy import FaultyProxy

pytestmark = pytest.mark.integration


def test_the_check_reads_writes_and_leaves_nothing(store: Store, proxy: FaultyProxy) -> None:
    report = check_bucket(store.blobs, store.at("checks/worker-1"), write=True)
    assert "read and written" in report
    assert store.blobs.list(Bucket(store.bucket), "") == []
    proxy.clear()
    assert "can be read" in check_bucket(store.blobs, Location("images", "check"), write=False)
    assert {seen.method for seen in proxy.seen()} == {"GET"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (access_denied(method="GET", target="list-type"), "listing.*s3:ListBucket"),
        (access_denied(method="PUT"), "writing.*s3:PutObject"),
        (access_denied(method="DELETE"), "deleting.*s3:DeleteObject"),
    ],
)
def test_the_check_names_the_missing_permission(
    store: Store, proxy: FaultyProxy, rule: Rule, message: str
) -> None:
    proxy.rules(rule)
    with pytest.raises(BlobDenied, match=message):
        check_bucket(store.blobs, store.at("check"), write=True)
    proxy.clear()
    assert store.blobs.list(Bucket(store.bucket), "") == []

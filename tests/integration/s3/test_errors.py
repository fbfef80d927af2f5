"""S3 errors, the port's error for each, and the remedy in its text."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from adapters.s3.options import S3Options
from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobUnavailable,
    IfMatch,
)
from domain.location import Bucket, Location
from tests.integration.s3.world import Store, hits, make
from tests.services.http_faults import Rule, access_denied, internal_error, s3_error, slow_down
from tests.services.http_proxy import FaultyProxy

pytestmark = pytest.mark.integration


def in_region(region: str) -> str:
    return f"<Region>{region}</Region>"


@pytest.mark.parametrize(
    ("rule", "expected", "message"),
    [
        (internal_error(), BlobUnavailable, "an internal error.*temporary"),
        (slow_down(), BlobUnavailable, "request rate.*FETCH_CONCURRENCY"),
        (access_denied(), BlobDenied, "s3:GetObject.*s3:ListBucket.*missing"),
        (s3_error("NoSuchKey", 404), BlobMissing, "no such object"),
        (s3_error("NoSuchBucket", 404), BlobDenied, "no bucket.*create it.*MODEL_BUCKET_NAME"),
        (
            Rule(fault="response", status=404, body="<html/>"),
            BlobUnavailable,
            "check the endpoint",
        ),
        (s3_error("InvalidAccessKeyId", 403), BlobUnavailable, "AWS_ACCESS_KEY_ID"),
        (s3_error("SignatureDoesNotMatch", 403), BlobUnavailable, "AWS_SECRET_ACCESS_KEY"),
        (s3_error("ExpiredToken", 400), BlobUnavailable, "expired.*new ones"),
        (s3_error("RequestTimeTooSkewed", 403), BlobUnavailable, "clock"),
        (s3_error("RequestTimeout", 400), BlobUnavailable, "slow"),
        (s3_error("XMinioStorageFull", 507), BlobUnavailable, "full.*free space"),
        (s3_error("QuotaExceeded", 403), BlobUnavailable, "full.*quota"),
        (s3_error("NotImplemented", 501), BlobDenied, "conditional writes"),
        (s3_error("InvalidObjectState", 403), BlobDenied, "archived: restore"),
        (
            s3_error("PermanentRedirect", 301, headers={"x-amz-bucket-region": "eu-west-1"}),
            BlobDenied,
            "AWS_S3_REGION_NAME=eu-west-1",
        ),
        (s3_error("PermanentRedirect", 301), BlobDenied, "another address.*AWS_S3_REGION_NAME"),
        (
            Rule(fault="response", status=301, headers={"Location": "https://s3.example"}),
            BlobDenied,
            "points to https://s3.example: set the endpoint",
        ),
        (
            s3_error("AuthorizationHeaderMalformed", 400, extra=in_region("eu-north-1")),
            BlobDenied,
            "AWS_S3_REGION_NAME=eu-north-1",
        ),
        (Rule(fault="hang", seconds=20), BlobUnavailable, "did not respond in time"),
        (Rule(fault="reset_before"), BlobUnavailable, "(?i)connection"),
        (Rule(fault="response", status=502, body="bad gateway"), BlobUnavailable, "502"),
    ],
    ids=lambda value: value.fault if isinstance(value, Rule) else None,
)
def test_errors_are_reported_with_a_remedy(
    store: Store, proxy: FaultyProxy, rule: Rule, expected: type[Exception], message: str
) -> None:
    proxy.rules(rule)
    with pytest.raises(expected, match=message) as raised:
        store.blobs.get(store.at("a"))
    assert f"s3://{store.bucket}/a" in str(raised.value)
    assert hits(proxy) >= 1


def test_a_success_response_of_another_server_is_rejected(
    store: Store, proxy: FaultyProxy
) -> None:
    for call in (
        lambda: store.blobs.get(store.at("a")),
        lambda: store.blobs.put(store.at("a"), b"1"),
        lambda: store.blobs.put(store.at("a"), b"1" * 7 * 1024**2),
    ):
        proxy.rules(Rule(fault="response", status=200, body="<html>please sign in</html>"))
        with pytest.raises(BlobUnavailable, match=r"s3://.*check the endpoint.*proxy"):
            call()


@pytest.mark.parametrize("fault", ["hang", "reset_before", "reset_after", "500", "503", "403"])
def test_a_temporary_error_is_retried_unless_it_is_a_denial(
    store: Store, proxy: FaultyProxy, fault: str
) -> None:
    rules = {
        "hang": Rule(fault="hang", seconds=20, times=1),
        "reset_before": Rule(fault="reset_before", times=1),
        "reset_after": Rule(fault="reset_after", times=1),
        "500": internal_error(times=1),
        "503": slow_down(times=1),
        "403": access_denied(times=1),
    }

    for call in (
        lambda: store.blobs.put(store.at("a"), b"1"),
        lambda: store.blobs.get(store.at("a")),
        lambda: store.blobs.list(Bucket(store.bucket), ""),
        lambda: store.blobs.delete(store.at("a")),
    ):
        proxy.rules(rules[fault])
        if fault == "403":
            with pytest.raises(BlobDenied):
                call()
        call()
        assert hits(proxy) == 1


def test_a_missing_bucket_is_distinguished_from_a_missing_object(
    options: S3Options, proxy: FaultyProxy
) -> None:
    store = make(options, "no-such-bucket")
    at = Location("no-such-bucket", "a")
    for access in (
        lambda: store.blobs.get(at),
        lambda: store.blobs.put(at, b"1"),
        lambda: store.blobs.put(at, b"1", condition=IfMatch('"0"')),
        lambda: store.blobs.delete(at),
        lambda: store.blobs.list(Bucket("no-such-bucket"), ""),
    ):
        with pytest.raises(BlobDenied, match="no bucket 'no-such-bucket': create it"):
            access()
    assert len(proxy.seen()) == 5


def test_an_unreachable_store_is_reported_with_its_address(options: S3Options) -> None:
    store = make(replace(options, endpoint_url="http://127.0.0.1:9"), "b")
    with pytest.raises(BlobUnavailable, match=r"cannot be reached.*127\.0\.0\.1:9"):
        store.blobs.get(store.at("a"))


def test_a_server_without_tls_is_recognised(options: S3Options, proxy: FaultyProxy) -> None:
    store = make(replace(options, endpoint_url=proxy.url.replace("http:", "https:")), "b")
    with pytest.raises(BlobUnavailable, match="certificate"):
        store.blobs.get(store.at("a"))


def test_missing_credentials_are_reported_with_their_settings(
    options: S3Options, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/no/such/file")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    anonymous = S3Options(endpoint_url=options.endpoint_url, region=options.region)
    store = make(anonymous, "bucket-of-ours")
    with pytest.raises(BlobUnavailable, match="set AWS_ACCESS_KEY_ID"):
        store.blobs.get(store.at("a"))
    assert proxy.seen() == []


def test_an_invalid_bucket_name_is_denied(options: S3Options, proxy: FaultyProxy) -> None:
    store = make(options, "No bucket!")
    with pytest.raises(BlobDenied, match="No bucket!"):
        store.blobs.get(store.at("a"))
    assert proxy.seen() == []


def test_an_invalid_region_is_reported_at_once(options: S3Options) -> None:
    with pytest.raises(BlobDenied, match="not a region"):
        make(replace(options, region="not a region"), "b")


def test_retry_after_of_the_store_is_respected_and_passed_on(
    store: Store, options: S3Options, proxy: FaultyProxy
) -> None:
    proxy.rules(slow_down(retry_after=2, times=1))
    begun = time.monotonic()
    store.blobs.put(store.at("a"), b"1")
    assert time.monotonic() - begun >= 1.9
    proxy.rules(slow_down(retry_after=1))
    with pytest.raises(BlobUnavailable) as raised:
        store.blobs.get(store.at("a"))
    assert raised.value.retry_after == 1
    later = {
        "Retry-After": "Tue, 01 Jan 2030 00:02:00 GMT",
        "Date": "Tue, 01 Jan 2030 00:00:00 GMT",
    }
    proxy.rules(s3_error("SlowDown", 503, headers=later))
    with pytest.raises(BlobUnavailable) as raised:
        store.blobs.get(store.at("a"))
    assert raised.value.retry_after == 120
    proxy.rules(slow_down(retry_after=10**9))
    with pytest.raises(BlobUnavailable) as raised:
        make(replace(options, max_attempts=1), store.bucket).blobs.get(store.at("a"))
    assert raised.value.retry_after == 3600


def test_a_wall_clock_set_back_after_throttling_delays_nothing(
    store: Store, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.rules(slow_down(times=1))
    store.blobs.put(store.at("a"), b"1")
    really = time.time
    monkeypatch.setattr(time, "time", lambda: really() - 7200)
    found: list[bytes] = []
    # A daemon, so that a reader that waits for the clock to catch up does not block the exit.
    reader = threading.Thread(
        target=lambda: found.append(store.blobs.get(store.at("a")).data), daemon=True
    )
    reader.start()
    reader.join(10)
    assert found == [b"1"]

"""Behaviour specific to Google Cloud Storage, and the port's error for each fault."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from google.auth.exceptions import GoogleAuthError, TransportError
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import RequestException, SSLError, Timeout

from adapters.gcs.errors import translate
from adapters.gcs.options import MIB, GcsOptions
from adapters.gcs.store import GcsBlobStore
from application.ports import (
    Blob,
    BlobDenied,
    BlobMissing,
    BlobStore,
    BlobTooLarge,
    BlobUnavailable,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Bucket, Location
from tests.integration.gcs.conftest import Store
from tests.services.http_faults import Rule
from tests.services.http_proxy import FaultyProxy
from tests.services.ports import free_ports

pytestmark = pytest.mark.integration

LARGE = os.urandom(2 * 8 * MIB + 1)
"""Three chunks of a resumable upload."""


def google(
    status: int, reason: str = "", message: str = "injected by a test", **when: Any
) -> Rule:
    """The rule for Google's own error response."""
    error = {"code": status, "message": message, "errors": [{"reason": reason}]}
    headers = {"Content-Type": "application/json", **when.pop("headers", {})}
    body = json.dumps({"error": error})
    return Rule(fault="response", status=status, body=body, headers=headers, **when)


def media_requests(proxy: FaultyProxy) -> int:
    return sum("alt=media" in seen.target for seen in proxy.seen())


@pytest.mark.parametrize(
    ("rule", "expected", "message"),
    [
        (google(403, "forbidden"), BlobDenied, "Storage Object Viewer.*objects.list.*missing"),
        (google(401, "authError"), BlobUnavailable, "GOOGLE_APPLICATION_CREDENTIALS"),
        (google(403, "rateLimitExceeded"), BlobUnavailable, "request rate.*FETCH_CONCURRENCY"),
        (google(429, "rateLimitExceeded"), BlobUnavailable, "request rate.*FETCH_CONCURRENCY"),
        (google(503, "backendError"), BlobUnavailable, "returned status 503"),
        (google(400, "invalid", "no such thing"), BlobDenied, "no such thing"),
        (google(403, "accountDisabled"), BlobDenied, "access is denied"),
        (
            Rule(fault="response", status=200, body="<html/>"),
            BlobUnavailable,
            "check STORAGE_EMUL",
        ),
        (Rule(fault="reset_before"), BlobUnavailable, "cannot be reached"),
        (Rule(fault="hang"), BlobUnavailable, "not respond in time"),
    ],
    ids=lambda value: value.fault + str(value.status) if isinstance(value, Rule) else None,
)
def test_each_fault_is_the_ports_error_with_a_remedy(
    store: Store, proxy: FaultyProxy, rule: Rule, expected: type[Exception], message: str
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.blobs.get(store.at("a")),
        lambda: store.blobs.put(store.at("a"), b"1"),
    ]
    for call in calls:
        proxy.rules(rule)
        with pytest.raises(expected, match=message) as raised:
            call()
        assert type(raised.value) is expected


def test_a_store_that_throttles_says_for_how_long(store: Store, proxy: FaultyProxy) -> None:
    proxy.rules(google(429, "rateLimitExceeded", headers={"Retry-After": "7"}))
    with pytest.raises(BlobUnavailable) as raised:
        store.blobs.get(store.at("a"))
    assert raised.value.retry_after == 7.0


def test_a_fault_that_passes_goes_unnoticed(store: Store, proxy: FaultyProxy) -> None:
    proxy.rules(google(503, "backendError", times=1), Rule(fault="reset_before", skip=1, times=1))
    etag = store.blobs.put(store.at("a"), b"1")
    assert store.blobs.get(store.at("a")) == Blob(b"1", etag)


@pytest.mark.parametrize("fault", ["cut", "corrupt"])
def test_a_body_that_is_damaged_on_its_way_is_read_again(
    store: Store, proxy: FaultyProxy, fault: Any
) -> None:
    store.blobs.put(store.at("a"), LARGE[:MIB])
    proxy.rules(Rule(fault=fault, target="alt=media", times=1))
    assert store.blobs.get(store.at("a")).data == LARGE[:MIB]


def test_a_body_that_is_always_damaged_is_not_returned(store: Store, proxy: FaultyProxy) -> None:
    store.blobs.put(store.at("a"), LARGE[:MIB])
    proxy.rules(Rule(fault="corrupt", target="alt=media"))
    with pytest.raises(BlobUnavailable, match="3 times"):
        store.blobs.get(store.at("a"))


def test_a_missing_bucket_is_distinguished_from_a_missing_blob(store: Store) -> None:
    nowhere = Location("no-such-bucket", "a", "gs")
    with pytest.raises(BlobMissing):
        store.blobs.get(store.at("a"))
    bucket = Bucket(nowhere.bucket, "gs")
    for call in (lambda: store.blobs.get(nowhere), lambda: store.blobs.list(bucket, "")):
        with pytest.raises(BlobDenied, match="no bucket 'no-such-bucket': create it"):
            call()


def test_a_write_to_a_bucket_that_does_not_exist_is_denied(options: GcsOptions) -> None:
    blobs = GcsBlobStore(options, readable=[], writable=["no-such-bucket"], sleep=lambda _: None)
    at = Location("no-such-bucket", "a", "gs")
    calls: list[Callable[[], object]] = [lambda: blobs.put(at, b"1"), lambda: blobs.delete(at)]
    for call in calls:
        with pytest.raises(BlobDenied, match="no bucket 'no-such-bucket'"):
            call()


def test_the_body_of_a_too_large_blob_is_not_read(store: Store, proxy: FaultyProxy) -> None:
    store.blobs.put(store.at("a"), b"12345")
    proxy.clear()
    with pytest.raises(BlobTooLarge, match="5 bytes, more than 4"):
        store.blobs.get(store.at("a"), max_bytes=4)
    assert media_requests(proxy) == 0


def test_a_blob_that_grows_between_its_size_and_its_body_is_too_large(
    store: Store, proxy: FaultyProxy
) -> None:
    store.blobs.put(store.at("a"), b"12345")
    head = json.dumps({"name": "a", "size": "1", "generation": "1"})
    json_head = {"Content-Type": "application/json"}
    proxy.rules(
        Rule(
            fault="response",
            status=200,
            body=head,
            headers=json_head,
            target="projection",
            times=1,
        )
    )
    with pytest.raises(BlobTooLarge):
        store.blobs.get(store.at("a"), max_bytes=4)


def test_a_resumable_upload_reads_back_whole(store: Store, proxy: FaultyProxy) -> None:
    etag = store.blobs.put(store.at("large"), LARGE)
    assert store.blobs.get(store.at("large")) == Blob(LARGE, etag)
    assert sum(seen.method == "PUT" for seen in proxy.seen()) == 3


def test_an_aborted_upload_creates_no_blob(store: Store, proxy: FaultyProxy) -> None:
    etag = store.blobs.put(store.at("large"), b"before")
    proxy.rules(google(503, method="PUT", skip=2))
    with pytest.raises(BlobUnavailable):
        store.blobs.put(store.at("large"), LARGE)
    proxy.clear()
    assert store.blobs.get(store.at("large")) == Blob(b"before", etag)


@pytest.mark.parametrize("status", [404, 410])
def test_an_expired_upload_session_is_restarted(
    store: Store, proxy: FaultyProxy, status: int
) -> None:
    proxy.rules(google(status, method="PUT", skip=1, times=1))
    store.blobs.put(store.at("large"), LARGE)
    assert store.blobs.get(store.at("large")).data == LARGE


def test_a_write_with_a_lost_response_is_repeated(store: Store, proxy: FaultyProxy) -> None:
    proxy.rules(Rule(fault="reset_after", method="POST", times=1))
    etag = store.blobs.put(store.at("a"), b"1")
    assert store.blobs.get(store.at("a")) == Blob(b"1", etag)


def test_a_conditional_write_with_a_lost_response_recognises_its_own_write(
    store: Store, proxy: FaultyProxy
) -> None:
    proxy.rules(Rule(fault="reset_after", method="POST", times=1))
    with pytest.raises(PreconditionFailed):
        store.blobs.put(store.at("a"), b"1", condition=IfAbsent())
    assert store.blobs.get(store.at("a")).data == b"1"


def test_a_condition_on_a_large_blob_is_sent(store: Store, proxy: FaultyProxy) -> None:
    """The emulator ignores it on resumable uploads; Google's service answers 412."""
    store.blobs.put(store.at("large"), LARGE, condition=IfMatch("77"))
    (begun,) = [seen for seen in proxy.seen() if seen.method == "POST"]
    assert "ifGenerationMatch=77" in begun.target


@pytest.mark.parametrize(
    ("denied", "call", "message"),
    [
        ("other", lambda blobs, at: blobs.get(at), "is not allowed, only .*ALLOWED_IMAGE"),
        ("other", lambda blobs, at: blobs.list(Bucket(at.bucket, "gs"), ""), "is not allowed"),
        ("other", lambda blobs, at: blobs.put(at, b""), "is not allowed"),
        ("images", lambda blobs, at: blobs.put(at, b""), "is read-only"),
        ("images", lambda blobs, at: blobs.delete(at), "is read-only"),
    ],
)
def test_a_bucket_that_is_not_allowed_is_denied_before_anything_is_sent(
    store: Store,
    proxy: FaultyProxy,
    denied: str,
    call: Callable[[BlobStore, Location], object],
    message: str,
) -> None:
    proxy.clear()
    with pytest.raises(BlobDenied, match=message):
        call(store.blobs, Location(denied, "a", "gs"))
    assert not proxy.seen()


def test_an_unreachable_store_is_unavailable(options: GcsOptions) -> None:
    (port,) = free_ports(1)
    unreachable = GcsOptions(emulator_url=f"http://127.0.0.1:{port}", retry_seconds=0.1)
    blobs = GcsBlobStore(unreachable, readable=["images"], writable=[], sleep=lambda _: None)
    with pytest.raises(BlobUnavailable, match="cannot be reached"):
        blobs.get(Location("images", "a", "gs"))


@pytest.mark.parametrize(
    "kind", [NoConnection, Timeout, SSLError, RequestException, TransportError, GoogleAuthError]
)
def test_an_error_does_not_show_the_upload_session(kind: type[Exception]) -> None:
    """Its URL is enough to continue the upload, without credentials."""
    (port,) = free_ports(1)
    with pytest.raises(NoConnection, match="upload_id=ABPt12") as caught:
        requests.put(f"http://127.0.0.1:{port}/o?a=b&upload_id=ABPt12", timeout=5)
    translated = str(translate(kind(str(caught.value)), "writing gs://models/a"))
    assert "ABPt12" not in translated
    assert "Connection refused" in translated


@pytest.mark.filterwarnings("ignore:The load_credentials_from_file:DeprecationWarning")
@pytest.mark.parametrize("content", [None, "no JSON", "{}"])
def test_credentials_that_cannot_be_used_are_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BlobUnavailable, match=r"set GOOGLE_APPLICATION_CREDENTIALS.*key\.json"):
        GcsBlobStore(
            GcsOptions(credentials_file=file), readable=[], writable=[], sleep=lambda _: None
        )


def test_a_machine_without_credentials_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(BlobUnavailable, match="no credentials: set GOOGLE_APPLICATION_CRED"):
        GcsBlobStore(GcsOptions(), readable=[], writable=[], sleep=lambda _: None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"connect_timeout": 0.0}, "connect_timeout must be more than 0"),
        ({"read_timeout": 0.0}, "read_timeout must be more than 0"),
        ({"retry_seconds": 0.0}, "retry_seconds must be more than 0"),
        ({"chunk_size": MIB + 1}, "multiple of 256 KiB"),
        ({"max_pool_connections": 0}, "at least 1"),
        ({"emulator_url": "127.0.0.1:4443"}, "give http://host:port"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GcsOptions(**wrong)

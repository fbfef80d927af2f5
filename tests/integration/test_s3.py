"""What S3 adds to a blob store's contract: a network, other people's rules, and secrets."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import requests

from adapters.s3.check import check_bucket
from adapters.s3.options import MIB, S3Options
from adapters.s3.store import TRIES, S3BlobStore
from application.fenced import FencedBlob, Superseded
from application.ports import (
    Blob,
    BlobDenied,
    BlobMissing,
    BlobTooLarge,
    BlobUnavailable,
    Condition,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Location
from tests.services.faulty_proxy import (
    FaultyProxy,
    Rule,
    access_denied,
    internal_error,
    running_proxy,
    s3_error,
    slow_down,
)
from tests.services.s3 import ACCESS_KEY, REGION, SECRET_KEY, S3Service, running_s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.integration

TOKEN = "a-session-token-of-the-tests"


@pytest.fixture(scope="module")
def service() -> Iterator[S3Service]:
    with running_s3("pictures", "no-list") as running:
        yield running


@pytest.fixture(scope="module")
def started_proxy(service: S3Service) -> Iterator[FaultyProxy]:
    with running_proxy(service.url) as running:
        yield running


@pytest.fixture
def proxy(started_proxy: FaultyProxy) -> FaultyProxy:
    started_proxy.clear()
    return started_proxy


@pytest.fixture
def bucket(service: S3Service) -> str:
    return service.new_bucket()


@pytest.fixture
def options(proxy: FaultyProxy) -> S3Options:
    return S3Options(
        endpoint_url=proxy.url,
        region=REGION,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        session_token=TOKEN,
        connect_timeout=2,
        read_timeout=1,
        max_attempts=2,
        multipart_threshold=6 * MIB,
        part_size=5 * MIB,
    )


@dataclass
class Store:
    """The store under test, through the proxy, and what it waited."""

    blobs: S3BlobStore
    bucket: str
    pauses: list[float]

    def at(self, key: str) -> Location:
        return Location(self.bucket, key)


def make(options: S3Options, bucket: str, *readable: str) -> Store:
    pauses: list[float] = []
    blobs = S3BlobStore(options, readable=readable, writable=[bucket], sleep=pauses.append)
    return Store(blobs, bucket, pauses)


@pytest.fixture
def store(options: S3Options, bucket: str) -> Store:
    return make(options, bucket, "pictures")


@pytest.fixture(scope="module")
def direct(service: S3Service) -> S3Client:
    """A client of the test's own, past adapter and proxy."""
    return boto3.client(
        "s3",
        endpoint_url=service.url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


def hits(proxy: FaultyProxy) -> int:
    return sum(seen.fault is not None for seen in proxy.seen())


# --- What is stored ------------------------------------------------------------------------


def test_an_object_is_stored_with_its_content_type_and_a_sha_256_that_s3_knows(
    store: Store, direct: S3Client
) -> None:
    data = b"weights"
    etag = store.blobs.put(store.at("a.json"), data, content_type="application/json")
    head = direct.head_object(Bucket=store.bucket, Key="a.json", ChecksumMode="ENABLED")
    assert head["ContentType"] == "application/json"
    assert head["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert head["ETag"] == etag


def test_a_large_object_goes_in_parts_and_reads_back_whole(
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
def test_an_upload_that_fails_leaves_neither_an_object_nor_parts(
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


def test_an_upload_in_parts_keeps_its_condition(store: Store, direct: S3Client) -> None:
    data = bytes(7 * MIB)
    at = store.at("large")
    etag = store.blobs.put(at, data, condition=IfAbsent())
    newer = store.blobs.put(at, data + b"2", condition=IfMatch(etag))
    for condition in (IfAbsent(), IfMatch(etag)):
        with pytest.raises(PreconditionFailed):
            store.blobs.put(at, data + b"3", condition=condition)
    assert store.blobs.get(at) == Blob(data + b"2", newer)
    assert "Uploads" not in direct.list_multipart_uploads(Bucket=store.bucket)


def test_an_upload_completed_by_a_try_whose_answer_was_lost_is_written_again(
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


def test_a_key_is_sent_as_it_is_however_odd(store: Store, direct: S3Client) -> None:
    keys = sorted(
        ["a b+c&d=e%20?f#g;h", "'\"<>|*:", "Grüße/画 🎨.png", "-", "~/.~", "日本語.webp"]
    )
    for key in keys:
        store.blobs.put(store.at(key), key.encode())
    assert [store.blobs.get(store.at(key)).data.decode() for key in keys] == keys
    assert [at.key for at in store.blobs.list(store.bucket, "")] == keys
    listed = direct.list_objects_v2(Bucket=store.bucket)["Contents"]
    assert sorted(entry["Key"] for entry in listed) == keys
    for key in keys:
        store.blobs.delete(store.at(key))
    assert store.blobs.list(store.bucket, "") == []


def test_a_key_that_is_no_unicode_is_denied_and_not_sent(store: Store, proxy: FaultyProxy) -> None:
    at = store.at("lone \ud800 surrogate")
    for access in (
        lambda: store.blobs.get(at),
        lambda: store.blobs.put(at, b"1"),
        lambda: store.blobs.delete(at),
    ):
        with pytest.raises(BlobDenied, match="Unicode"):
            access()
    assert proxy.seen() == []


def test_a_list_has_every_page_and_leaves_out_what_can_be_no_location(
    store: Store, direct: S3Client
) -> None:
    def write(number: int) -> None:
        direct.put_object(Bucket=store.bucket, Key=f"many/{number:04}", Body=b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(1005)))
    for strange in ("many//double", "many/folder/", "many/../up", "many/back\\slash"):
        direct.put_object(Bucket=store.bucket, Key=strange, Body=b"")
    listed = store.blobs.list(store.bucket, "many/")
    assert [at.key for at in listed] == [f"many/{number:04}" for number in range(1005)]


# --- Conditions and lost answers -------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_of_eight_writers_with_stores_of_their_own_exactly_one_wins(
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
def test_a_conflict_is_tried_again_and_the_write_succeeds(
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


def test_a_conflict_that_stays_says_that_the_write_is_in_doubt(
    store: Store, proxy: FaultyProxy
) -> None:
    proxy.rules(s3_error("ConditionalRequestConflict", 409, method="PUT"))
    with pytest.raises(BlobUnavailable, match="another write came between"):
        store.blobs.put(store.at("a"), b"1", condition=IfAbsent())
    assert hits(proxy) == TRIES
    assert store.pauses == [0.2, 0.4]


def test_a_fenced_write_whose_answer_was_lost_is_known_as_our_own(
    store: Store, proxy: FaultyProxy
) -> None:
    fenced = FencedBlob(store.blobs, store.at("lease"))
    assert fenced.read() is None
    for turn in range(3):
        proxy.rules(Rule(fault="reset_after", method="PUT", times=1))
        fenced.write(b"ours %d" % turn)
        assert hits(proxy) == 1
        assert [seen.status for seen in proxy.seen() if seen.method == "PUT"] == [None, 412]
    proxy.clear()
    assert store.blobs.get(store.at("lease")).data == b"ours 2"


def test_a_fenced_write_in_doubt_is_resolved_by_the_next_one(
    store: Store, proxy: FaultyProxy
) -> None:
    fenced = FencedBlob(store.blobs, store.at("lease"))
    fenced.read()
    fenced.write(b"first")
    proxy.rules(Rule(fault="reset_after", method="PUT", times=1), internal_error())
    with pytest.raises(BlobUnavailable):
        fenced.write(b"second")
    proxy.clear()
    assert store.blobs.get(store.at("lease")).data == b"second"
    fenced.write(b"third")
    assert store.blobs.get(store.at("lease")).data == b"third"


def test_a_fenced_write_after_another_workers_is_superseded(store: Store) -> None:
    ours, theirs = (FencedBlob(store.blobs, store.at("lease")) for _ in range(2))
    ours.read()
    theirs.read()
    ours.write(b"ours")
    with pytest.raises(Superseded):
        theirs.write(b"theirs")
    store.blobs.delete(store.at("lease"))
    with pytest.raises(Superseded):
        ours.write(b"ours again")


# --- Reading what arrives --------------------------------------------------------------------


def test_an_object_that_is_too_large_is_refused_by_its_head(
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
def test_a_damaged_body_is_read_again_and_never_given_out(
    store: Store, proxy: FaultyProxy, direct: S3Client, fault: Any, kind: str
) -> None:
    data = b"picture" * (MIB if kind == "parts" else 100)
    if kind == "md5":
        requests.put(f"{direct.meta.endpoint_url}/{store.bucket}/a", data, timeout=30)
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


def test_an_upload_damaged_on_its_way_is_sent_again(store: Store, proxy: FaultyProxy) -> None:
    proxy.rules(s3_error("BadDigest", 400, method="PUT", times=1))
    store.blobs.put(store.at("a"), b"1")
    assert store.blobs.get(store.at("a")).data == b"1"
    assert hits(proxy) == 1


# --- Errors and remedies ---------------------------------------------------------------------


def in_region(region: str) -> str:
    return f"<Region>{region}</Region>"


@pytest.mark.parametrize(
    ("rule", "expected", "said"),
    [
        (internal_error(), BlobUnavailable, "a fault of its own.*pass"),
        (slow_down(), BlobUnavailable, "fewer requests.*FETCH_CONCURRENCY"),
        (access_denied(), BlobDenied, "s3:GetObject.*s3:ListBucket.*missing"),
        (s3_error("NoSuchKey", 404), BlobMissing, "no such object"),
        (s3_error("NoSuchBucket", 404), BlobDenied, "no bucket.*create it.*MODEL_BUCKET_NAME"),
        (Rule(fault="answer", status=404, body="<html/>"), BlobUnavailable, "check the endpoint"),
        (s3_error("InvalidAccessKeyId", 403), BlobUnavailable, "AWS_ACCESS_KEY_ID"),
        (s3_error("SignatureDoesNotMatch", 403), BlobUnavailable, "AWS_SECRET_ACCESS_KEY"),
        (s3_error("ExpiredToken", 400), BlobUnavailable, "expired.*new ones"),
        (s3_error("RequestTimeTooSkewed", 403), BlobUnavailable, "clock"),
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
            Rule(fault="answer", status=301, headers={"Location": "https://s3.example"}),
            BlobDenied,
            "points to https://s3.example: set the endpoint",
        ),
        (
            s3_error("AuthorizationHeaderMalformed", 400, extra=in_region("eu-north-1")),
            BlobDenied,
            "AWS_S3_REGION_NAME=eu-north-1",
        ),
        (Rule(fault="hang", seconds=20), BlobUnavailable, "does not answer in time"),
        (Rule(fault="reset_before"), BlobUnavailable, "(?i)connection"),
        (Rule(fault="answer", status=502, body="bad gateway"), BlobUnavailable, "502"),
    ],
    ids=lambda value: value.fault if isinstance(value, Rule) else None,
)
def test_what_goes_wrong_is_told_with_its_remedy(
    store: Store, proxy: FaultyProxy, rule: Rule, expected: type[Exception], said: str
) -> None:
    proxy.rules(rule)
    with pytest.raises(expected, match=said) as told:
        store.blobs.get(store.at("a"))
    assert f"s3://{store.bucket}/a" in str(told.value)
    assert hits(proxy) >= 1


@pytest.mark.parametrize("fault", ["hang", "reset_before", "reset_after", "500", "503", "403"])
def test_a_fault_that_passes_is_not_noticed_unless_it_is_a_refusal(
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
        lambda: store.blobs.list(store.bucket, ""),
        lambda: store.blobs.delete(store.at("a")),
    ):
        proxy.rules(rules[fault])
        if fault == "403":
            with pytest.raises(BlobDenied):
                call()
        call()
        assert hits(proxy) == 1


def test_a_bucket_that_does_not_exist_is_told_from_a_missing_object(
    options: S3Options, proxy: FaultyProxy
) -> None:
    store = make(options, "no-such-bucket")
    at = Location("no-such-bucket", "a")
    for access in (
        lambda: store.blobs.get(at),
        lambda: store.blobs.put(at, b"1"),
        lambda: store.blobs.put(at, b"1", condition=IfMatch('"0"')),
        lambda: store.blobs.delete(at),
        lambda: store.blobs.list("no-such-bucket", ""),
    ):
        with pytest.raises(BlobDenied, match="no bucket 'no-such-bucket': create it"):
            access()
    assert len(proxy.seen()) == 5


def test_a_store_that_cannot_be_reached_is_told_with_its_address(options: S3Options) -> None:
    store = make(replace(options, endpoint_url="http://127.0.0.1:9"), "b")
    with pytest.raises(BlobUnavailable, match=r"cannot be reached.*127\.0\.0\.1:9"):
        store.blobs.get(store.at("a"))


def test_a_server_that_does_not_speak_tls_is_told_apart(
    options: S3Options, proxy: FaultyProxy
) -> None:
    store = make(replace(options, endpoint_url=proxy.url.replace("http:", "https:")), "b")
    with pytest.raises(BlobUnavailable, match="certificate"):
        store.blobs.get(store.at("a"))


def test_missing_credentials_are_told_with_the_settings_that_give_them(
    options: S3Options, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/no/such/file")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    none = {"access_key_id": None, "secret_access_key": None, "session_token": None}
    store = make(replace(options, **none), "b-of-ours")
    with pytest.raises(BlobUnavailable, match="set AWS_ACCESS_KEY_ID"):
        store.blobs.get(store.at("a"))
    assert proxy.seen() == []


def test_a_name_that_no_bucket_can_have_is_denied(options: S3Options, proxy: FaultyProxy) -> None:
    store = make(options, "No bucket!")
    with pytest.raises(BlobDenied, match="No bucket!"):
        store.blobs.get(store.at("a"))
    assert proxy.seen() == []


def test_a_region_that_cannot_be_one_is_told_at_once(options: S3Options) -> None:
    with pytest.raises(BlobDenied, match="not a region"):
        make(replace(options, region="not a region"), "b")


def test_the_wait_that_the_store_asks_for_is_kept_and_passed_on(
    store: Store, proxy: FaultyProxy
) -> None:
    proxy.rules(slow_down(retry_after=2, times=1))
    begun = time.monotonic()
    store.blobs.put(store.at("a"), b"1")
    assert time.monotonic() - begun >= 1.9
    proxy.rules(slow_down(retry_after=1))
    with pytest.raises(BlobUnavailable) as told:
        store.blobs.get(store.at("a"))
    assert told.value.retry_after == 1
    later = {
        "Retry-After": "Tue, 01 Jan 2030 00:02:00 GMT",
        "Date": "Tue, 01 Jan 2030 00:00:00 GMT",
    }
    proxy.rules(s3_error("SlowDown", 503, headers=later))
    with pytest.raises(BlobUnavailable) as told:
        store.blobs.get(store.at("a"))
    assert told.value.retry_after == 120


# --- Who may do what -------------------------------------------------------------------------


def test_a_bucket_off_the_list_is_denied_without_a_request(
    store: Store, proxy: FaultyProxy
) -> None:
    at = Location("strangers", "a")
    for access in (
        lambda: store.blobs.get(at),
        lambda: store.blobs.put(at, b"1"),
        lambda: store.blobs.delete(at),
        lambda: store.blobs.list("strangers", ""),
    ):
        with pytest.raises(BlobDenied, match=r"'strangers'.*ALLOWED_IMAGE_BUCKETS"):
            access()
    assert proxy.seen() == []


def test_training_pictures_may_be_read_and_not_written(
    store: Store, proxy: FaultyProxy, direct: S3Client
) -> None:
    direct.put_object(Bucket="pictures", Key="a.png", Body=b"picture")
    at = Location("pictures", "a.png")
    assert store.blobs.get(at).data == b"picture"
    assert store.blobs.list("pictures", "a") == [at]
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


# --- An operator's check ---------------------------------------------------------------------


def test_the_check_tries_reading_and_writing_and_leaves_nothing(
    store: Store, proxy: FaultyProxy
) -> None:
    said = check_bucket(store.blobs, store.at("checks/worker-1"), write=True)
    assert "read and written" in said
    assert store.blobs.list(store.bucket, "") == []
    proxy.clear()
    assert "can be read" in check_bucket(store.blobs, Location("pictures", "check"), write=False)
    assert {seen.method for seen in proxy.seen()} == {"GET"}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (access_denied(method="GET", target="list-type"), "listing.*s3:ListBucket"),
        (access_denied(method="PUT"), "writing.*s3:PutObject"),
        (access_denied(method="DELETE"), "deleting.*s3:DeleteObject"),
    ],
)
def test_the_check_names_what_is_missing(
    store: Store, proxy: FaultyProxy, rule: Rule, said: str
) -> None:
    proxy.rules(rule)
    with pytest.raises(BlobDenied, match=said):
        check_bucket(store.blobs, store.at("check"), write=True)
    proxy.clear()
    assert store.blobs.list(store.bucket, "") == []


def test_the_check_finds_a_store_that_ignores_conditions(store: Store) -> None:
    class Careless:
        def __getattr__(self, name: str) -> Any:
            return getattr(store.blobs, name)

        def put(self, at: Location, data: bytes, **options: Any) -> str:
            return store.blobs.put(at, data, **{**options, "condition": None})

    careless: Any = Careless()
    with pytest.raises(BlobDenied, match="two workers could train one job"):
        check_bucket(careless, store.at("check"), write=True)
    assert store.blobs.list(store.bucket, "") == []


# --- Secrets and options ---------------------------------------------------------------------


def test_no_secret_is_in_logs_errors_or_reprs(
    options: S3Options,
    bucket: str,
    proxy: FaultyProxy,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    printed = [repr(options), str(options)]
    with caplog.at_level(logging.DEBUG):
        store = make(options, bucket)
        printed += [repr(store), repr(vars(store.blobs))]
        calls: list[Callable[[], object]] = [
            lambda: store.blobs.put(store.at("a"), b"1"),
            lambda: store.blobs.put(store.at("large"), bytes(7 * MIB)),
            lambda: store.blobs.get(store.at("a")),
            lambda: store.blobs.list(bucket, ""),
            lambda: store.blobs.delete(store.at("a")),
        ]
        secret = f"<AWSSecretAccessKey>{SECRET_KEY}</AWSSecretAccessKey>"
        for rule in (
            None,
            internal_error(),
            access_denied(),
            s3_error("SignatureDoesNotMatch", 403, extra=secret),
            Rule(fault="reset_before"),
            Rule(fault="cut"),
        ):
            proxy.rules(*([rule] if rule else []))
            for call in calls:
                try:
                    call()
                except (BlobDenied, BlobMissing, BlobUnavailable) as error:
                    logging.getLogger("test").exception("it failed")
                    printed.append(repr(error))
    captured = capfd.readouterr()
    everything = "\n".join([*printed, caplog.text, captured.out, captured.err])
    assert "it failed" in everything
    for told in (SECRET_KEY, TOKEN, ACCESS_KEY):
        assert told not in everything


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"endpoint_url": "minio:9000"}, "endpoint_url must be like https"),
        ({"endpoint_url": "https://user:hunter2@minio:9000"}, "access_key_id"),
        ({"secret_access_key": None}, "both or neither"),
        ({"access_key_id": None, "secret_access_key": None}, "session_token needs"),
        ({"part_size": 1024}, "part_size must be at least 5242880"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"read_timeout": 0}, "read_timeout must be more than 0"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(
    options: S3Options, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as told:
        replace(options, **wrong)
    assert "hunter2" not in str(told.value)

"""Secrets are never shown."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from adapters.s3.options import MIB, S3Options
from application.ports import (
    BlobDenied,
    BlobMissing,
    BlobUnavailable,
)
from domain.location import Bucket
from tests.integration.s3.world import TOKEN, make
from tests.services.http_faults import Rule, access_denied, internal_error, s3_error
from tests.services.http_proxy import FaultyProxy
from tests.services.s3 import ACCESS_KEY, SECRET_KEY

pytestmark = pytest.mark.integration


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
            lambda: store.blobs.list(Bucket(bucket), ""),
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
    for secret in (SECRET_KEY, TOKEN, ACCESS_KEY):
        assert secret not in everything

"""The webhook adapter without a network: URLs, tokens, responses."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters.common.deadline import Deadline
from adapters.webhook.options import InvalidBackend, WebhookOptions
from adapters.webhook.response import (
    MAX_REASON_CHARACTERS,
    check_response,
    connection_error,
    readable,
)
from adapters.webhook.transport import Response, TransportError
from application.ports import NotifierRejected, NotifierUnavailable
from tests.services.waiting import eventually

TOKEN = 'quoted"slashed/and-more-0123456789-abcdefgh'
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def options(url: str = "https://api.example.com", token: str = TOKEN) -> WebhookOptions:
    return WebhookOptions(base_url=url, token=token, user_agent="style-trainer/test")


@pytest.mark.parametrize(
    "url",
    [
        "https://stylelicense.com",
        "https://stylelicense.com:8443/backend",
        "HTTPS://StyleLicense.com",
        "https://10.0.0.1",
        "http://localhost:8000",
        "http://LOCALHOST",
        "http://127.0.0.1:8000",
        "http://127.255.3.4",
        "http://[::1]:8000",
    ],
)
def test_https_is_allowed_anywhere_and_http_on_loopback(url: str) -> None:
    assert options(url + "/").base_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://stylelicense.com",
        "http://localhost.evil.com",
        "http://127.0.0.1.evil.com",
        "http://evil-localhost",
        "http://127.1",
        "http://2130706433",
        "http://0x7f.0.0.1",
        "http://0.0.0.0",
        "http://128.0.0.1",
        "http://[::2]",
        "http://[::ffff:127.0.0.1]",
        "http://[::1]evil.com",
        "http://localhost@evil.com",
        "http://localhost:80@evil.com",
        "http://evil.com#@localhost",
        "http://evil.com\\@localhost",
        "http://evil.com?@localhost",
        "http://localhost%2eevil.com",
        "http://lo\u0441alhost",
        "http://localhost\n.evil.com",
        "https://user:hunter2@stylelicense.com",
        "https://stylelicense.com?x=1",
        "https://stylelicense.com:port",
        "https://stylelicense.com:99999",
        "https://",
        "https:///path",
        "//stylelicense.com",
        "stylelicense.com",
        "ftp://localhost",
        "file:///etc/passwd",
        "http://[::1",
        "",
    ],
)
def test_a_url_unsafe_for_the_token_is_rejected_with_the_settings_name(
    url: str,
) -> None:
    with pytest.raises(InvalidBackend, match=r"BACKEND_API_URL.*give https://") as caught:
        options(url)
    assert "hunter2" not in str(caught.value)


def test_the_remedy_for_plain_http_is_the_same_address_with_https() -> None:
    with pytest.raises(InvalidBackend, match=r"https://stylelicense\.com:8000/backend, or"):
        options("http://stylelicense.com:8000/backend")


@pytest.mark.parametrize("token", ["", "short", "with space " * 5, "line\n" * 10, "ü" * 40])
def test_a_token_invalid_in_a_header_is_rejected_and_not_shown(token: str) -> None:
    with pytest.raises(InvalidBackend, match=r"INTERNAL_API_TOKEN.*give") as caught:
        options(token=token)
    assert not token or token not in str(caught.value)


def test_the_token_is_not_in_the_repr_of_the_options() -> None:
    assert TOKEN not in repr(options()) + str(options())


def test_a_certificate_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidBackend, match=r"BACKEND_CA_FILE.*PEM"):
        WebhookOptions(
            base_url="https://b", token=TOKEN, user_agent="x", ca_file=tmp_path / "absent.pem"
        )


def judged(status: int, body: bytes | None = b"", **headers: str) -> Exception | None:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return check_response(Response(status, names, body), NOW, TOKEN)


@pytest.mark.parametrize("status", [200, 201, 202])
@pytest.mark.parametrize("body", [b'{"success": true}', b'{"success": true, "id": 7}', None])
def test_a_2xx_status_is_a_success_even_without_its_body(status: int, body: bytes | None) -> None:
    assert judged(status, body) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"success": false, "error": "no"}',
        b'{"success": "true"}',
        b'{"success": 1}',
        b"<html>Welcome to nginx</html>",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_2xx_status_with_a_foreign_body_is_never_retried(body: bytes) -> None:
    error = judged(200, body)
    assert isinstance(error, NotifierRejected)
    assert "BACKEND_API_URL" in str(error)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "a field is missing"),
        (401, "INTERNAL_API_TOKEN"),
        (403, "X-Request-Source"),
        (404, "the style is gone"),
        (405, "BACKEND_API_URL"),
        (418, "BACKEND_API_URL"),
    ],
)
def test_a_rejection_has_status_reason_and_remedy(status: int, remedy: str) -> None:
    error = judged(status, b'{"success": false, "error": "style 7 is\\n\\u001b[31m gone"}')
    assert isinstance(error, NotifierRejected)
    assert rf"returned {status} (style 7 is \u001b[31m gone)" in str(error)
    assert remedy in str(error)


@pytest.mark.parametrize("key", ["error", "detail", "message"])
def test_the_backends_error_message_is_extracted_from_its_json(key: str) -> None:
    body = f'{{"success": false, "{key}": "no such style"}}'
    assert "returned 404 (no such style)" in str(judged(404, body.encode()))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_a_retry_after_header_is_respected(status: int) -> None:
    error = judged(status, b"<h1>busy</h1>", Retry_After="30")
    assert isinstance(error, NotifierUnavailable)
    assert error.retry_after == 30.0
    assert f"{status} (<h1>busy</h1>)" in str(error)


@pytest.mark.parametrize(("status", "uncertain"), [(502, True), (503, False), (504, True)])
def test_after_a_proxys_response_the_call_may_have_arrived(status: int, uncertain: bool) -> None:
    assert ("may or may not have received the call" in str(judged(status))) is uncertain


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_rejected_and_its_target_named(status: int) -> None:
    error = judged(status, Location="https://www.example.com/x")
    assert isinstance(error, NotifierRejected)
    assert "https://www.example.com/x; the token is not sent there" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        TOKEN,
        'quoted\\"slashed/and-more-0123456789-abcdefgh',
        "quoted%22slashed%2Fand-more-0123456789-abcdefgh",
        "quoted&quot;slashed/and-more-0123456789-abcdefgh",
    ],
)
def test_a_token_echoed_by_the_backend_is_redacted(body: str) -> None:
    for filler in ("", "x" * 280, "x" * 10_000):
        text = f"{filler}{body}"
        for error in (
            judged(500, text.encode()),
            judged(302, Location=text),
            connection_error(TransportError(text), "https://b", TOKEN),
        ):
            assert "abcdefgh" not in str(error)
            assert "slashed" not in str(error)
            assert len(str(error)) < 600


@pytest.mark.parametrize(
    ("silence", "message"),
    [
        (TransportError("cut", sent=True), "may or may not have received the call: cut"),
        (
            TransportError("cut", sent=True, untrusted=True),
            "may or may not have received the call: cut",
        ),
        (
            TransportError("expired", sent=False, untrusted=True),
            "TLS with https://b fails (expired)",
        ),
        (
            TransportError("refused", sent=False),
            "cannot be reached, the call was not sent: refused",
        ),
    ],
)
def test_a_call_that_may_have_arrived_is_distinguished_from_one_that_did_not(
    silence: TransportError, message: str
) -> None:
    assert message in str(connection_error(silence, "https://b", TOKEN))


def test_text_above_the_limit_is_cut_to_it() -> None:
    longest = "x" * MAX_REASON_CHARACTERS
    assert readable(longest, TOKEN) == longest
    assert readable(f"{longest}x", TOKEN) == f"{longest[:-1]}…"


def test_a_request_is_aborted_at_its_deadline_unless_finished() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        with Deadline(0.05) as deadline:
            deadline.watch(ours)
        time.sleep(0.1)
        theirs.send(b"1")
        assert ours.recv(1) == b"1"
        with Deadline(0.05) as deadline:
            deadline.watch(ours)
            assert ours.recv(1) == b""


def test_a_request_sent_after_its_deadline_is_aborted_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Deadline(0.01) as deadline:
        eventually(lambda: deadline.over)
        deadline.watch(ours)
        theirs.settimeout(10)
        assert theirs.recv(1) == b""
        ours.close()
        deadline.watch(ours)  # closed already: nothing to abort


def test_plain_http_and_a_short_token_are_explicit_choices() -> None:
    inside = "http://backend:8000"
    with pytest.raises(InvalidBackend, match="BACKEND_ALLOW_HTTP=true"):
        WebhookOptions(base_url=inside, token="t" * 32, user_agent="test")
    with pytest.raises(InvalidBackend, match="BACKEND_ALLOW_SHORT_TOKEN=true"):
        WebhookOptions(base_url="https://backend", token="dev-internal-token", user_agent="test")
    options = WebhookOptions(
        base_url=inside,
        token="dev-internal-token",
        user_agent="test",
        allow_http=True,
        allow_short_token=True,
    )
    assert options.base_url == inside

"""The webhook adapter against a backend process, over HTTP."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapters.clock import SystemClock
from adapters.memory import ManualClock
from adapters.schemas.bodies import complete_body, failed_body, progress_body
from adapters.webhook.notifier import Bodies, WebhookNotifier
from adapters.webhook.options import WebhookOptions
from application.ports import NotifierRejected, NotifierUnavailable
from domain.failure import Failure, FailureCode
from domain.location import Location
from domain.progress import Progress
from domain.results import Artifact, TrainingMetric
from tests.services.backend_faults import Fault, response
from tests.services.backend_process import BackendProcess
from tests.services.certificates import Authority
from tests.services.commands import ROOT
from tests.services.ports import free_ports

pytestmark = pytest.mark.integration

ARTIFACT = Artifact(Location("models", "models/style_7.safetensors"), "ab" * 32, 3_000_000)
METRIC = TrainingMetric(loss=0.05, epochs=100, steps=1000)
PROGRESS = Progress(50, 100, 500, 1000, steps_per_second=2.0)
FAILURE = Failure(FailureCode.GPU_OOM, "The card is too small.")
BODIES = Bodies(progress_body, complete_body, failed_body)
TASK_ID = "550e8400-e29b-41d4-a716-446655440000"
KEY = f"{TASK_ID}:complete"
SHORT = 0.4
"""Timeout in seconds, where a test waits for it to expire."""


@pytest.fixture(scope="module")
def process() -> Iterator[BackendProcess]:
    with BackendProcess(styles=range(1, 100)) as running:
        yield running


@pytest.fixture
def backend(process: BackendProcess) -> BackendProcess:
    process.misbehave()
    process.forget()
    return process


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def notifier_for(
    url: str, token: str, clock: ManualClock | SystemClock, **options: Any
) -> WebhookNotifier:
    named = {"read_timeout": 20.0, "progress_timeout": 20.0, **options}
    given = WebhookOptions(base_url=url, token=token, user_agent="style-trainer/1.2.3", **named)
    return WebhookNotifier(given, BODIES, clock)


@pytest.fixture
def notifier(backend: BackendProcess, clock: ManualClock) -> Iterator[WebhookNotifier]:
    made = notifier_for(backend.url, backend.token, clock)
    yield made
    made.close()


@pytest.fixture
def hasty(backend: BackendProcess, clock: ManualClock) -> Iterator[WebhookNotifier]:
    """A notifier with a short timeout."""
    made = notifier_for(
        backend.url,
        backend.token,
        clock,
        connect_timeout=SHORT,
        read_timeout=SHORT,
        progress_timeout=SHORT,
    )
    yield made
    made.close()


def complete(notifier: WebhookNotifier, style_id: int = 7) -> None:
    notifier.completed(TASK_ID, style_id, ARTIFACT, METRIC)


def fail_and_complete(notifier: WebhookNotifier) -> None:
    with pytest.raises(NotifierUnavailable):
        complete(notifier)
    complete(notifier)


def test_the_three_calls_match_the_contract(
    backend: BackendProcess, notifier: WebhookNotifier
) -> None:
    notifier.progress(7, PROGRESS)
    complete(notifier)
    notifier.failed("task", 8, FAILURE)
    progress, completed, failed = backend.calls
    assert [call.kind for call in backend.calls] == ["progress", "complete", "failed"]
    assert progress.body == progress_body(7, PROGRESS)
    assert completed.body == complete_body(TASK_ID, 7, ARTIFACT, METRIC)
    assert failed.body == failed_body(8, FAILURE)
    keys = (progress.idempotency_key, completed.idempotency_key, failed.idempotency_key)
    assert keys == (None, KEY, "task:failed")
    for call in backend.calls:
        assert call.accepted
        assert call.headers["user-agent"] == "style-trainer/1.2.3"
        assert call.headers["x-request-source"] == "training-server"
        assert call.headers["content-type"] == "application/json"


def test_consecutive_calls_share_a_connection(
    backend: BackendProcess, notifier: WebhookNotifier
) -> None:
    for style_id in range(1, 6):
        notifier.progress(style_id, PROGRESS)
    complete(notifier)
    assert len({call.peer for call in backend.calls}) == 1


@pytest.mark.parametrize(("status", "remedy"), [(401, "INTERNAL_API_TOKEN"), (404, "gone")])
def test_a_rejection_is_raised_at_once_with_status_reason_and_remedy(
    backend: BackendProcess,
    notifier: WebhookNotifier,
    clock: ManualClock,
    status: int,
    remedy: str,
) -> None:
    backend.misbehave(response(status, body={"success": False, "error": "because"}))
    with pytest.raises(NotifierRejected, match=f"{status} \\(because\\).*{remedy}"):
        complete(notifier)
    assert len(backend.calls) == 1


def test_the_backends_own_rejections_are_raised(
    backend: BackendProcess, notifier: WebhookNotifier, clock: ManualClock
) -> None:
    with pytest.raises(NotifierRejected, match=r"404 \(Style 999 not found\)"):
        complete(notifier, 999)
    stranger = notifier_for(backend.url, "another-token-of-more-than-32-characters", clock)
    with pytest.raises(NotifierRejected, match="INTERNAL_API_TOKEN"):
        complete(stranger)
    with pytest.raises(NotifierRejected, match="INTERNAL_API_TOKEN"):
        stranger.progress(7, PROGRESS)
    stranger.close()
    assert not any(call.accepted for call in backend.calls)


@pytest.mark.parametrize("status", [429, 502])
def test_a_temporary_failure_is_raised_and_not_retried(
    backend: BackendProcess, notifier: WebhookNotifier, status: int
) -> None:
    backend.misbehave(response(status))
    with pytest.raises(NotifierUnavailable, match=str(status)) as caught:
        complete(notifier)
    assert caught.value.retry_after is None
    complete(notifier)
    assert [call.response for call in backend.calls] == [status, 200]
    assert {call.idempotency_key for call in backend.calls} == {KEY}
    assert len(backend.final) == 1


def test_retry_after_is_passed_on_from_seconds_and_date(
    backend: BackendProcess, notifier: WebhookNotifier, clock: ManualClock
) -> None:
    date = format_datetime(clock.now() + timedelta(seconds=9), usegmt=True)
    headers = {"3": 3.0, date: 9.0, "soon": None, "600": 600.0}
    backend.misbehave(*(response(503, retry_after=header) for header in headers))
    for seconds in headers.values():
        with pytest.raises(NotifierUnavailable) as caught:
            complete(notifier)
        assert caught.value.retry_after == seconds


@pytest.mark.parametrize("fault", [Fault("reset_before"), Fault("hang")])
def test_a_call_that_was_not_accepted_can_be_repeated(
    backend: BackendProcess, hasty: WebhookNotifier, fault: Fault
) -> None:
    backend.misbehave(fault)
    fail_and_complete(hasty)
    assert [call.accepted for call in backend.calls] == [False, True]
    assert backend.repeats == {}


@pytest.mark.parametrize("do", ["reset_after", "hang_after", "slow_status"])
def test_a_call_with_a_lost_response_is_repeated_with_the_same_key(
    backend: BackendProcess, hasty: WebhookNotifier, do: str
) -> None:
    backend.misbehave(Fault(do))
    fail_and_complete(hasty)
    assert [call.idempotency_key for call in backend.final] == [KEY, KEY]
    assert backend.repeats == {KEY: 1}


@pytest.mark.parametrize("do", ["cut", "slow_body", "slow_headers"])
def test_a_success_with_a_truncated_body_is_not_repeated(
    backend: BackendProcess, clock: ManualClock, do: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Long enough for a busy machine to send the status; only slow_headers lasts until then.
    notifier = notifier_for(backend.url, backend.token, clock, connect_timeout=0.1, read_timeout=3)
    backend.misbehave(Fault(do, seconds=120.0 if do == "slow_headers" else 0.3))
    complete(notifier)
    notifier.close()
    assert len(backend.final) == 1
    assert "was accepted with 200, but the response ended early" in caplog.text


@pytest.mark.parametrize(
    "body", [{"success": False, "error": "no"}, {"success": True, "more": "x" * 500_000}]
)
def test_a_success_with_a_foreign_body_is_rejected_and_never_repeated(
    backend: BackendProcess, notifier: WebhookNotifier, clock: ManualClock, body: Any
) -> None:
    backend.misbehave(response(200, body=body))
    with pytest.raises(NotifierRejected, match="returned 200"):
        complete(notifier)
    assert len(backend.calls) == 1


@pytest.mark.parametrize("do", ["hang", "slow_status", "slow_headers", "slow_body"])
def test_progress_returns_in_time_however_slow_the_backend(
    backend: BackendProcess, hasty: WebhookNotifier, do: str
) -> None:
    backend.misbehave(Fault(do, seconds=120.0))
    began = time.monotonic()
    # With its status in time, a call is accepted. A busy machine may be late with the status.
    accepted = suppress(NotifierUnavailable)
    lost = pytest.raises(NotifierUnavailable, match="no response in time")
    with accepted if do in ("slow_headers", "slow_body") else lost:
        hasty.progress(7, PROGRESS)
    # Far from 120 s; how far depends on the machine.
    assert time.monotonic() - began < 30
    assert len(backend.calls) == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (response(500), NotifierUnavailable),
        (response(429, retry_after="7"), NotifierUnavailable),
        (Fault("reset_after"), NotifierUnavailable),
        (response(404), NotifierRejected),
    ],
)
def test_progress_is_tried_once(
    backend: BackendProcess,
    notifier: WebhookNotifier,
    clock: ManualClock,
    fault: Fault,
    error: type[Exception],
) -> None:
    backend.misbehave(fault)
    with pytest.raises(error):
        notifier.progress(7, PROGRESS)
    assert len(backend.calls) == 1


def test_an_unreachable_backend_is_unavailable(clock: ManualClock) -> None:
    (port,) = free_ports(1)
    notifier = notifier_for(f"http://127.0.0.1:{port}", "t" * 32, clock)
    with pytest.raises(NotifierUnavailable, match="not sent: Connection refused"):
        complete(notifier)


def test_a_restarted_backend_gets_the_call(clock: ManualClock) -> None:
    with BackendProcess() as first:
        notifier = notifier_for(first.url, first.token, clock)
        notifier.progress(7, PROGRESS)
        first.stop()
        with pytest.raises(NotifierUnavailable):
            complete(notifier)
        first.start()
        # Over a connection that the first process had left behind, or a new one.
        complete(notifier)
        assert len(first.final) == 1
    notifier.close()


class Elsewhere(ThreadingHTTPServer):
    """Another server, which records what it receives."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ElsewhereHandler)
        self.received: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class ElsewhereHandler(BaseHTTPRequestHandler):
    server: Elsewhere

    def handle_one_request(self) -> None:
        """Respond to any method with the same page."""
        self.raw_requestline = self.rfile.readline(65537)
        self.close_connection = True
        if not self.raw_requestline or not self.parse_request():
            return
        self.server.received.append(f"{self.requestline}\n{self.headers}")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    server = Elsewhere()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_is_not_followed(
    backend: BackendProcess, notifier: WebhookNotifier, elsewhere: Elsewhere, status: int
) -> None:
    fault = Fault("response", status, {"Location": f"{elsewhere.url}/x"})
    backend.misbehave(fault, fault)
    for call in (lambda: complete(notifier), lambda: notifier.progress(7, PROGRESS)):
        with pytest.raises(NotifierRejected, match=f"{status}, redirects to {elsewhere.url}/x"):
            call()
    assert elsewhere.received == []
    assert len(backend.calls) == 2


@pytest.mark.parametrize("location", ["http://[broken", "//", "\x01", "x" * 5000])
def test_a_redirect_with_an_unusable_target_is_a_rejection(
    backend: BackendProcess, notifier: WebhookNotifier, location: str
) -> None:
    backend.misbehave(Fault("response", 302, {"Location": location}))
    with pytest.raises(NotifierRejected, match="redirects to"):
        complete(notifier)


def test_proxies_and_netrc_of_the_environment_are_not_used(
    backend: BackendProcess,
    notifier: WebhookNotifier,
    elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, elsewhere.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    notifier.progress(7, PROGRESS)
    complete(notifier)
    assert elsewhere.received == []
    assert [call.accepted for call in backend.calls] == [True, True]


def test_cookies_are_not_kept(backend: BackendProcess, notifier: WebhookNotifier) -> None:
    backend.misbehave(Fault("response", 500, {"Set-Cookie": "session=1; Path=/"}))
    fail_and_complete(notifier)
    assert all("cookie" not in call.headers for call in backend.calls)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BackendProcess, Path]]:
    """A backend with TLS, and the certificate file of its CA."""
    authority = Authority(tmp_path_factory.mktemp("tls"))
    with BackendProcess(authority=authority) as running:
        yield running, authority.certificate


def test_tls_with_a_private_ca_works(secured: tuple[BackendProcess, Path]) -> None:
    backend, authority = secured
    backend.forget()
    notifier = notifier_for(backend.url, backend.token, SystemClock(), ca_file=authority)
    assert "accepts the token" in notifier.check()
    complete(notifier)
    notifier.close()
    assert len(backend.final) == 1


def test_a_slow_response_over_tls_ends_in_time_too(secured: tuple[BackendProcess, Path]) -> None:
    backend, authority = secured
    backend.forget()
    notifier = notifier_for(
        backend.url, backend.token, SystemClock(), ca_file=authority, progress_timeout=SHORT
    )
    for do in ("slow_status", "hang"):
        backend.misbehave(Fault(do, seconds=120.0))
        with pytest.raises(NotifierUnavailable, match="no response in time"):
            notifier.progress(7, PROGRESS)
    notifier.progress(7, PROGRESS)
    notifier.close()


def test_an_untrusted_certificate_gets_no_token(
    secured: tuple[BackendProcess, Path], clock: ManualClock
) -> None:
    backend, _ = secured
    backend.forget()
    notifier = notifier_for(backend.url, backend.token, clock)
    for call in (notifier.check, lambda: complete(notifier)):
        with pytest.raises(NotifierUnavailable, match=r"TLS with https.*certificate"):
            call()
    assert backend.calls == []


def test_the_check_reports_problems_without_a_notification(
    backend: BackendProcess,
    notifier: WebhookNotifier,
    elsewhere: Elsewhere,
    clock: ManualClock,
) -> None:
    def problem(url: str, token: str = backend.token) -> str:
        with pytest.raises((NotifierUnavailable, NotifierRejected)) as caught:
            notifier_for(url, token, clock).check()
        return f"{type(caught.value).__name__}: {caught.value}"

    assert notifier.check() == f"{backend.url} accepts the token; styles can be read"
    stranger = problem(backend.url, "another-token-of-more-than-32-characters")
    assert "INTERNAL_API_TOKEN" in stranger
    backend.misbehave(response(403))
    unmarked = problem(backend.url)
    assert "X-Request-Source" in unmarked
    assert not any("not the backend's host" in text for text in (stranger, unmarked))
    assert "not the backend's host" in problem(elsewhere.url)
    assert "not the backend's host or path" in problem(f"{backend.url}/other")
    (port,) = free_ports(1)
    assert "Unavailable" in problem(f"http://127.0.0.1:{port}")
    assert "TLS with" in problem(backend.url.replace("http://", "https://"))
    assert "cannot be reached" in problem("https://no-such-host.invalid")
    backend.misbehave(response(503), Fault("response", 302, {"Location": elsewhere.url}))
    assert "503" in problem(backend.url)
    assert "redirects" in problem(backend.url)
    assert not any(call.accepted for call in backend.calls)


def test_an_exception_being_handled_is_not_the_cause_of_a_failed_call(
    backend: BackendProcess, clock: ManualClock
) -> None:
    notifier = notifier_for(backend.url, backend.token, clock)
    backend.misbehave(Fault("reset_before"))
    try:
        raise TimeoutError("of something else")
    except TimeoutError:
        with pytest.raises(NotifierUnavailable) as caught:
            complete(notifier)
    assert "something else" not in str(caught.value)
    assert "no response in time" not in str(caught.value)


FAILING_RUN = """
import logging, sys, traceback
from adapters.clock import SystemClock
from adapters.webhook.options import WebhookOptions
from adapters.webhook.notifier import WebhookNotifier
from tests.integration.test_webhook import BODIES, FAILURE, PROGRESS, complete

logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s", stream=sys.stderr)


def build():
    url, token = sys.stdin.read().split()
    for address in ("http://example.com", f"https://user:{token}@example.com"):
        try:
            WebhookOptions(base_url=address, token=token, user_agent="x")
        except Exception as error:
            print(repr(error), error)
    return WebhookOptions(
        base_url=url, token=token, user_agent="style-trainer/1.2.3",
        connect_timeout=0.3, read_timeout=0.3, progress_timeout=0.3,
    )


options = build()
notifier = WebhookNotifier(options, BODIES, SystemClock())
print(repr(options), str(options), repr(notifier), vars(notifier))
raised = 0
for call in (
    lambda: complete(notifier), lambda: notifier.progress(7, PROGRESS), notifier.check,
    lambda: notifier.failed("task", 7, FAILURE),
) * 8:
    try:
        call()
    except Exception as error:
        raised += 1
        print(repr(error), error, error.args, vars(error))
        print(repr(error.__cause__), repr(error.__context__))
        traceback.print_exc()
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        print("".join(shown.format()))
print("errors raised:", raised)
raise SystemExit(complete(notifier))
"""


def test_a_failing_run_never_prints_the_token(
    backend: BackendProcess, elsewhere: Elsewhere
) -> None:
    echoed = f"your token was {backend.token}, on "
    echo = [
        response(500, body={"error": echoed}),
        response(401, body=f"<pre>Authorization: Bearer {backend.token}</pre>"),
        response(400, body={"success": False, "request": {"headers": [echoed * 20]}}),
        response(429, retry_after=backend.token, body=echoed),
        response(200, body={"success": False, "error": echoed}),
        Fault("response", 307, {"Location": f"{elsewhere.url}/?token={backend.token}"}),
        *(Fault(do, seconds=5.0) for do in ("hang", "reset_before", "reset_after", "cut")),
        Fault("slow_status", seconds=5.0),
    ]
    backend.misbehave(probability=1.0, among=echo, seed=5)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FAILING_RUN)],
        cwd=ROOT,
        input=f"{backend.url} {backend.token}",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    printed = run.stdout + run.stderr
    raised = int(printed.split("errors raised: ")[1].split()[0])
    assert raised > 20, printed
    assert "urllib3.connectionpool" in run.stderr
    assert "[token]" in printed
    assert len(backend.calls) > 30
    assert backend.token not in printed
    for start in range(len(backend.token) - 12):
        assert backend.token[start : start + 12] not in printed


def test_the_log_of_a_process_does_not_contain_the_token(
    backend: BackendProcess, notifier: WebhookNotifier, caplog: pytest.LogCaptureFixture
) -> None:
    backend.misbehave(response(500, body=backend.token), Fault("reset_after"), Fault("cut"))
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            with pytest.raises(NotifierUnavailable):
                complete(notifier)
        complete(notifier)
    assert "the response ended early" in caplog.text
    assert backend.token not in caplog.text

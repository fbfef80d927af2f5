"""Log lines go to CloudWatch Logs (moto's), and its outages never affect the worker."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from watchtower import CloudWatchLogHandler

from adapters.logs import cloudwatch
from adapters.logs.cloudwatch import CloudWatchMissing, CloudWatchOptions, cloudwatch_handler
from adapters.logs.formats import JsonFormatter
from adapters.logs.redact import Redactor
from adapters.logs.setup import start_logging
from entrypoints.logs import start_cloudwatch
from tests.services.ports import free_ports
from tests.services.settings import make_settings
from tests.services.waiting import eventually

pytestmark = pytest.mark.integration

CREDENTIALS = {"access_key_id": "AKIDTESTS", "secret_access_key": "secret"}
GROUP = "style-trainer"
TOLD = "log lines cannot be sent"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloudwatch, "SEND_SECONDS", 0.1)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    requests = logging.getLogger("werkzeug")  # this process's log, which a test reads
    level = requests.level
    requests.setLevel("ERROR")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    requests.setLevel(level)


def client(url: str) -> Any:
    return boto3.client(
        "logs",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="AKIDTESTS",
        aws_secret_access_key="secret",
    )


@contextmanager
def logging_to(url: str, stream: str = "worker-1", group: str = GROUP) -> Iterator[logging.Logger]:
    """A logger whose lines go to the CloudWatch at a URL."""
    handler = cloudwatch_handler(
        CloudWatchOptions(
            group=group, stream=stream, region="us-east-1", endpoint_url=url, **CREDENTIALS
        )
    )
    handler.setFormatter(JsonFormatter(Redactor(["hunter2-and-more"])))
    log = logging.getLogger(f"tests.cloudwatch.{stream}")
    log.setLevel("INFO")
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)
        handler.close()


def stored(url: str, stream: str) -> list[dict[str, Any]]:
    found = client(url).get_log_events(
        logGroupName=GROUP, logStreamName=stream, startFromHead=True
    )
    return [json.loads(event["message"]) for event in found["events"]]


def test_lines_arrive_as_json_in_the_stream_of_their_worker(moto: str) -> None:
    client(moto).create_log_group(logGroupName=GROUP)
    with logging_to(moto, "host:7*{x}") as log:
        log.info("epoch %d", 3)
        log.warning("the password is hunter2-and-more")
    first, second = stored(moto, "host_7__x_")
    assert (first["level"], first["message"]) == ("INFO", "epoch 3")
    assert second["message"] == "the password is [redacted]"


def test_settings_of_a_worker_select_the_log_group(
    moto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", moto)
    client(moto).create_log_group(logGroupName="workers")
    settings = make_settings(
        cloudwatch_log_group="workers",
        aws_access_key_id="AKIDTESTS",
        aws_secret_access_key="a-secret-of-the-tests",
    )
    logs = start_logging(level="INFO", secrets=settings.secrets(), stream=io.StringIO())
    start_cloudwatch(settings, logs, "worker-9")
    logging.getLogger("x").info("with a-secret-of-the-tests")
    (handler,) = (
        one for one in logging.getLogger().handlers if isinstance(one, CloudWatchLogHandler)
    )
    start_logging(level="WARNING")  # removes the handler
    handler.close()  # sends what waits
    events = client(moto).get_log_events(logGroupName="workers", logStreamName="worker-9")
    messages = [json.loads(event["message"])["message"] for event in events["events"]]
    assert messages == ["with [redacted]"]


def test_a_missing_log_group_is_reported_once(moto: str, caplog: pytest.LogCaptureFixture) -> None:
    with logging_to(moto, group="missing") as log:
        log.info("one")
        eventually(lambda: TOLD in caplog.text)
        for _ in range(5):
            log.info("more")
            time.sleep(0.15)
    assert caplog.text.count(TOLD) == 1
    assert "missing" in caplog.text


def test_lines_arrive_again_after_an_outage(moto: str, caplog: pytest.LogCaptureFixture) -> None:
    with logging_to(moto, "later", group="later") as log:
        log.info("lost")
        eventually(lambda: TOLD in caplog.text)
        client(moto).create_log_group(logGroupName="later")

        def logged_again() -> bool:
            log.info("found")
            return "log lines are sent to CloudWatch again" in caplog.text

        caplog.set_level("INFO", "adapters.logs.cloudwatch")
        eventually(logged_again)
    events = client(moto).get_log_events(logGroupName="later", logStreamName="later")["events"]
    assert {json.loads(event["message"])["message"] for event in events} >= {"found"}


def test_an_unavailable_cloudwatch_does_not_delay_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (port,) = free_ports(1)
    with logging_to(f"http://127.0.0.1:{port}") as log:
        began = time.monotonic()
        for number in range(1000):
            log.info("line %d", number)
        assert time.monotonic() - began < 2
        eventually(lambda: TOLD in caplog.text)
        log.info("one more")
        began = time.monotonic()
    assert time.monotonic() - began < 10, "the process's end waits for a few seconds at most"
    assert caplog.text.count(TOLD) == 1


def test_an_unresponsive_cloudwatch_buffers_few_lines_without_delay() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with logging_to(f"http://127.0.0.1:{silent.getsockname()[1]}") as log:
            began = time.monotonic()
            for number in range(2 * cloudwatch.MAX_WAITING):
                log.info("line %d", number)
            assert time.monotonic() - began < 20
            (handler,) = log.handlers
            waiting = sum(lines.qsize() for lines in handler.queues.values())  # type: ignore[attr-defined]
            assert waiting <= cloudwatch.MAX_WAITING
            began = time.monotonic()
        assert time.monotonic() - began < 10


def test_a_rejecting_cloudwatch_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    class Reject(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"__type": "AccessDeniedException", "message": "no PutLogEvents for you"}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Reject)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with logging_to(f"http://127.0.0.1:{server.server_port}", group="rejected") as log:
            for _ in range(3):
                log.info("line")
                time.sleep(0.3)
            eventually(lambda: TOLD in caplog.text)
    finally:
        server.shutdown()
        server.server_close()
    assert caplog.text.count("to the CloudWatch group rejected (AccessDenied") == 1
    assert "no PutLogEvents for you" in caplog.text


def test_a_missing_library_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchtower", None)
    with pytest.raises(CloudWatchMissing, match=r"pip install 'style-trainer\[cloudwatch\]'"):
        cloudwatch_handler(CloudWatchOptions(group="g", stream="s", region="us-east-1"))

"""Events sent to Sentry, captured at the library's transport without a network."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk

from adapters.logs.context import LogContext
from adapters.logs.redact import Redactor
from adapters.logs.sentry import SentryMissing, start_sentry
from application.event_bus import MessageSettled, TaskReceived
from application.settlement import Ack
from domain.events import JobStarted

TOKEN = "a-token-of-32-characters-or-more!"


class Wire(sentry_sdk.transport.Transport):
    """Records the events that would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            if item.headers.get("type") == "event":
                self.events.append(json.loads(item.get_bytes()))


@pytest.fixture
def context() -> LogContext:
    return LogContext("worker-1")


@pytest.fixture
def wire(context: LogContext) -> Iterator[Wire]:
    transport = Wire()
    context(TaskReceived(task_id="a-task", style_id=7))
    context(JobStarted(task_id="a-task", style_id=7, attempt=2, resumed_from=None))
    start_sentry(
        "https://public@sentry.invalid/1",
        version="1.2.3",
        context=context,
        redact=Redactor([TOKEN]),
        transport=transport,
    )
    yield transport
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def test_an_error_arrives_with_its_job_and_without_secrets(wire: Wire) -> None:
    log = logging.getLogger("tests.sentry")
    secret_local = {"password": TOKEN}
    log.warning("a breadcrumb with %s", TOKEN)
    try:
        raise RuntimeError(f"refused {secret_local}")
    except RuntimeError:
        log.exception("call with %s failed", TOKEN)
    sentry_sdk.flush()
    (event,) = wire.events
    assert event["tags"] == {"task_id": "a-task", "style_id": "7", "attempt": "2"}
    assert event["release"] == "style-trainer@1.2.3"
    assert event["server_name"] == "worker-1"
    assert TOKEN not in json.dumps(event)
    assert "breadcrumb" in json.dumps(event)
    frames = event["exception"]["values"][0]["stacktrace"]["frames"]
    assert not any("vars" in frame for frame in frames)


def test_errors_of_concurrent_jobs_carry_their_own_job(wire: Wire, context: LogContext) -> None:
    log = logging.getLogger("tests.sentry")
    together = threading.Barrier(2, timeout=30)

    def work(style_id: int) -> None:
        context(TaskReceived(task_id=f"t{style_id}", style_id=style_id))
        context(
            JobStarted(task_id=f"t{style_id}", style_id=style_id, attempt=1, resumed_from=None)
        )
        together.wait()
        log.error("style %d broke", style_id)

    workers = [threading.Thread(target=work, args=(style_id,)) for style_id in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sentry_sdk.flush()
    tags = {
        event["logentry"]["message"] % tuple(event["logentry"]["params"]): event["tags"]
        for event in wire.events
    }
    assert tags == {
        f"style {n} broke": {"task_id": f"t{n}", "style_id": str(n), "attempt": "1"}
        for n in (1, 2)
    }


def test_only_errors_are_sent(wire: Wire) -> None:
    logging.getLogger("tests.sentry").warning("nothing to worry about")
    sentry_sdk.flush()
    assert not wire.events


def test_an_invalid_dsn_is_one_line_with_the_setting() -> None:
    with pytest.raises(SentryMissing, match="SENTRY_DSN"):
        start_sentry("nonsense", version="1", context=LogContext(), redact=Redactor())


def test_an_error_outside_a_job_has_no_job_tags(wire: Wire, context: LogContext) -> None:
    context(MessageSettled(task_id=None, settlement=Ack()))
    with sentry_sdk.new_scope() as scope:
        scope.set_tag("part", "queue")
        logging.getLogger("tests.sentry").error("no connection")
    sentry_sdk.flush()
    (event,) = wire.events
    assert event["tags"] == {"part": "queue"}


def test_a_missing_library_is_one_line_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(SentryMissing, match=r"pip install 'style-trainer\[sentry\]'"):
        start_sentry("x", version="1", context=LogContext("w"), redact=Redactor())

"""Log lines: job context, redaction, formats, and the log of each job."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from adapters.clock import SystemClock
from adapters.logs.context import LogContext
from adapters.logs.formats import JsonFormatter, TextFormatter
from adapters.logs.job_log import JobLog
from adapters.logs.redact import REDACTED, Redactor
from adapters.memory import ManualClock, MemoryBlobStore, MemoryInspector
from application.event_bus import EventBus
from application.fetch_images import fetch_images
from application.ports import BlobMissing, BlobUnavailable
from application.settlement import Ack
from application.stop_signal import StopSignal
from application.worker_config import WorkerConfig
from domain.events import JobCompleted, JobStarted
from domain.location import Location
from domain.results import Artifact
from tests.application.world import TASK_ID, World, a_task, received, settled

TOKEN = "s3cret/Token+with=everything\"and'more\n0123456789"


class Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def context() -> LogContext:
    return LogContext("worker-1")


@pytest.fixture
def collector(context: LogContext) -> Iterator[Collector]:
    handler = Collector()
    handler.setFormatter(JsonFormatter(Redactor([TOKEN])))
    handler.addFilter(context)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


log = logging.getLogger("tests.logs")


# --- whose line it is --------------------------------------------------------------------


def test_every_line_of_a_job_carries_task_style_attempt_and_worker(
    context: LogContext, collector: Collector
) -> None:
    log.info("no job")
    context(received(a_task()))
    log.info("before anything happened")
    context(JobStarted(task_id=TASK_ID, style_id=7, attempt=3, resumed_from=None))
    log.info("at work")
    context(settled(a_task(), Ack()))
    log.info("nothing again")
    idle, early, work, after = collector.objects
    assert "task_id" not in idle
    assert "task_id" not in after
    assert (early["task_id"], early["style_id"], early["worker"]) == (TASK_ID, 7, "worker-1")
    assert work["attempt"] == 3


def test_lines_from_pools_and_timers_carry_the_job(
    context: LogContext, collector: Collector
) -> None:
    ticked = threading.Event()

    def tick() -> None:
        log.info("tick")
        ticked.set()

    class Talking:
        def get(self, at: Location, **_: Any) -> Any:
            log.info("%s from %s", at.name, threading.current_thread().name)
            raise BlobMissing(str(at))

    images = tuple(Location("media", f"{n}.jpg") for n in range(8))
    context(received(a_task()))
    with SystemClock().every(0.01, tick):
        # The timer was there before; the attempt becomes known only now.
        context(JobStarted(task_id=TASK_ID, style_id=7, attempt=3, resumed_from=None))
        # The use case only reads from this store.
        blobs: Any = Talking()
        config = WorkerConfig(fetch_concurrency=4)
        fetch_images(images, 512, blobs, MemoryInspector(), config, StopSignal())
        ticked.clear()
        assert ticked.wait(30)
    fetches = [line for line in collector.objects if " from fetch_" in line["message"]]
    last = [line for line in collector.objects if line["message"] == "tick"][-1]
    assert len(fetches) == 8
    assert {(line["task_id"], line["attempt"]) for line in [*fetches, last]} == {(TASK_ID, 3)}


def test_lines_of_concurrent_jobs_name_their_own_job(
    context: LogContext, collector: Collector
) -> None:
    together = threading.Barrier(2, timeout=30)

    def work(style_id: int) -> None:
        task = replace(a_task(), task_id=f"task-{style_id}", style_id=style_id)
        started = JobStarted(
            task_id=task.task_id, style_id=style_id, attempt=style_id, resumed_from=None
        )
        together.wait()
        context(received(task))
        together.wait()
        context(started)
        together.wait()
        log.info("%d at work", style_id)
        together.wait()
        if style_id == 2:
            context(settled(task, Ack()))
        together.wait()
        log.info("%d still here", style_id)

    workers = [threading.Thread(target=work, args=(style_id,)) for style_id in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    log.info("of none")
    whose = {
        line["message"]: (line.get("task_id"), line.get("attempt")) for line in collector.objects
    }
    assert whose == {
        "1 at work": ("task-1", 1),
        "2 at work": ("task-2", 2),
        "1 still here": ("task-1", 1),
        "2 still here": (None, None),
        "of none": (None, None),
    }


def test_every_line_of_the_use_case_carries_the_job(
    context: LogContext, collector: Collector
) -> None:

    world, task = World(), a_task(images=12)
    world.blobs.put(Location("media", "7/03.txt"), b"\xff\xfe not text")
    context(received(task))
    world.worker(events=context)(task, StopSignal())
    context(settled(a_task(), Ack()))
    assert collector.objects, "the damaged caption is worth a line"
    assert {line["task_id"] for line in collector.objects} == {TASK_ID}


# --- secrets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        TOKEN,
        quote(TOKEN, safe=""),
        base64.b64encode(TOKEN.encode()).decode(),
        repr(TOKEN),
        json.dumps(TOKEN),
        f"https://backend/api?x={quote(TOKEN, safe='')}&y=1",
        f"{{'Authorization': 'Bearer {TOKEN}'}}",
    ],
)
def test_a_secret_is_redacted_in_every_encoding(form: str) -> None:
    hidden = Redactor([TOKEN])(f"before {form} after")
    assert "oken" not in hidden, hidden
    assert REDACTED in hidden
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")


@pytest.mark.parametrize(
    "form",
    [quote, quote_plus, json.dumps, lambda text: json.dumps(text, ensure_ascii=False), ascii],
)
def test_a_secret_with_spaces_and_non_ascii_letters_is_redacted_in_every_encoding(
    form: Callable[[str], str],
) -> None:
    assert REDACTED in Redactor(["grüner Käse\n"])(form("grüner Käse\n"))


@pytest.mark.parametrize(
    ("text", "kept", "secret"),
    [
        ("amqp://guest:pa55@broker:5672/vhost", "broker:5672/vhost", "pa55"),
        ("amqp://guest:pa:55@broker", "broker", "pa:55"),
        ("amqp://:pa55@broker", "broker", "pa55"),
        ("Authorization: Bearer abcdefghijkl", "Bearer", "abcdefghijkl"),
        ("GET /x?X-Amz-Signature=0f0f0f&X-Amz-Date=2026", "X-Amz-Date=2026", "0f0f0f"),
        ("GET /?token=abcdef", "/?token=", "abcdef"),
        ("GET /?a=1;ACCESS_TOKEN=abcdef", "a=1;ACCESS_TOKEN=", "abcdef"),
        ("GET /?sig=abcdef", "/?sig=", "abcdef"),
        ("/k?X-Amz-Date=1&X-Amz-Signature=0f0f0f", "X-Amz-Date=1", "0f0f0f"),
        ("GET /k?Signature=abcdef&Expires=1", "&Expires=1", "abcdef"),
        ("GET /k?AWSAccessKeyId=AKIA1234&Expires=1", "&Expires=1", "AKIA1234"),
        ("/k?X-Amz-Credential=AKIA1234%2Fs3&X-Amz-Date=1", "X-Amz-Date=1", "AKIA1234"),
        ("/k?X-Amz-Security-Token=abcdef&X-Amz-Date=1", "X-Amz-Date=1", "abcdef"),
        ("PUT /o?uploadType=resumable&upload_id=ABPt12", "Type=resumable&upload_id=", "ABPt12"),
        ("{'authorization': 'basic dXNlcjpwYXNz'}", "'basic ", "dXNlcjpwYXNz"),
    ],
)
def test_text_that_looks_like_a_secret_is_redacted(text: str, kept: str, secret: str) -> None:
    hidden = Redactor()(text)
    assert kept in hidden
    assert secret not in hidden


@pytest.mark.parametrize(
    "text", ["s3://bucket/key with spaces@2x.png", "https://host/path", "user@host", "basic facts"]
)
def test_other_text_is_not_redacted(text: str) -> None:
    assert Redactor([None, ""])(text) == text


@pytest.mark.parametrize(
    ("begin", "repeated"),
    [
        ("http://", ":"),
        ("", "://a:"),
        ("", "bearer "),
        ("basic", " "),
        ("", "?token="),
        ("?", "&sig"),
    ],
)
def test_a_hostile_text_does_not_stall_the_log(begin: str, repeated: str) -> None:
    text = begin + repeated * 40_000
    started = time.monotonic()
    Redactor([TOKEN])(text)
    assert time.monotonic() - started < 1.0


def test_every_text_in_a_structure_is_redacted() -> None:
    found = Redactor(["hunter22"]).deep(
        {"of hunter22": [("hunter22", 3), {"x": b"\xff hunter22"}, None]}
    )
    assert found == {f"of {REDACTED}": [[REDACTED, 3], {"x": f"\ufffd {REDACTED}"}, None]}


def test_redacting_a_short_secret_keeps_the_words_around_it() -> None:
    assert Redactor(["able"])("table able unable") == f"table {REDACTED} unable"
    assert Redactor(["not so short"])("xnot so shortx") == f"x{REDACTED}x"


def test_the_longer_of_two_overlapping_secrets_is_redacted_whole() -> None:
    assert Redactor(["password", "password-2"])("password-2") == REDACTED


def test_message_arguments_and_tracebacks_are_redacted(collector: Collector) -> None:
    try:
        raise RuntimeError(f"refused {TOKEN}")
    except RuntimeError:
        log.exception("call with %s and %r failed", TOKEN, {"token": TOKEN})
    (line,) = collector.lines
    assert "s3cret" not in line
    assert json.loads(line)["exception"].startswith("Traceback")


# --- how a line looks --------------------------------------------------------------------


def record_of(message: str, *args: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("app", level, __file__, 1, message, args, None)


def test_a_json_line_is_one_object_with_its_time_in_utc() -> None:
    line = JsonFormatter(Redactor()).format(record_of("two\nlines with “quotes”"))
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == "two\nlines with “quotes”"
    assert found["level"] == "INFO"
    assert found["logger"] == "app"
    assert found["time"].endswith("+00:00")


@pytest.mark.parametrize("message", ["%d %d", "%(name)s %(other)s", "%z"])
def test_wrong_format_arguments_lose_no_line(message: str) -> None:
    found = json.loads(JsonFormatter(Redactor()).format(record_of(message, {"name": 1})))
    assert found["message"] == f"{message} {{'name': 1}}"


def test_a_requested_stack_trace_is_redacted() -> None:
    record = record_of("here")
    record.stack_info = f"Stack:\n  call({TOKEN!r})"
    shown = TextFormatter(Redactor([TOKEN])).format(record)
    assert shown.endswith(f"here\n    Stack:\n      call('{REDACTED}')")
    found = json.loads(JsonFormatter(Redactor([TOKEN])).format(record))
    assert found["stack"] == f"Stack:\n  call('{REDACTED}')"


def test_a_text_line_has_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of("a\tb")
    record.created = 0.0
    monkeypatch.setenv("TZ", "UTC-5:30")
    time.tzset()
    try:
        assert TextFormatter(Redactor()).format(record) == "05:30:00 INFO    a\\tb"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_empty_message_is_logged() -> None:
    assert TextFormatter(Redactor()).format(record_of("")).endswith(" INFO    ")


def test_a_text_line_names_the_job_once(context: LogContext) -> None:
    context(received(a_task()))
    formatter = TextFormatter(Redactor())
    plain, named = record_of("fetching"), record_of(f"task {TASK_ID} starts")
    for record in (plain, named):
        context.filter(record)
    assert formatter.format(plain).endswith("INFO    [style 7, task 550e8400] fetching")
    assert formatter.format(named).endswith(f"INFO    task {TASK_ID} starts")


def test_colour_is_used_only_where_enabled() -> None:
    record = record_of("hot", level=logging.ERROR)
    assert "\x1b[31mERROR" in TextFormatter(Redactor(), colour=True).format(record)
    assert "\x1b" not in TextFormatter(Redactor()).format(record)


def test_a_hostile_name_cannot_inject_terminal_codes_or_log_lines() -> None:
    shown = TextFormatter(Redactor()).format(record_of("%s", "\x1b[2Jx\n12:00:00 INFO forged"))
    assert "\x1b" not in shown
    assert shown.splitlines()[1].startswith("    ")


# --- the log of one job ------------------------------------------------------------------


def put_log(blobs: Any) -> Callable[[str, str, bytes], None]:
    return World().store(blobs=blobs).put_log


def job_log(blobs: Any, max_bytes: int = 100_000) -> JobLog:
    handler = JobLog(put_log(blobs), ManualClock(), "host/1", max_bytes)
    handler.setFormatter(JsonFormatter(Redactor([TOKEN])))
    return handler


def line_of(task_id: str | None, message: str, *args: object) -> logging.LogRecord:
    """A log record with the fields that ``LogContext`` adds."""
    record = record_of(message, *args)
    record.task_id = task_id
    return record


STARTED = JobStarted(task_id=TASK_ID, style_id=7, attempt=1, resumed_from=None)


def test_the_log_of_a_job_is_stored_with_its_files() -> None:
    blobs = MemoryBlobStore()
    handler, context = job_log(blobs), LogContext("host/1")
    handler.addFilter(context)
    listeners = EventBus(context, handler)
    handler.handle(record_of("of no job"))
    listeners(received(a_task()))
    listeners(STARTED)
    handler.handle(record_of(f"working with {TOKEN}"))
    listeners(settled(a_task(), Ack()))
    handler.handle(record_of("of no job"))
    (at,) = blobs.blobs
    assert at == Location("models", f"jobs/{TASK_ID}/logs/20260101T000000Z_host_1.jsonl")
    (line,) = blobs.blobs[at].decode().splitlines()
    assert "s3cret" not in line
    assert json.loads(line)["attempt"] == 1


def test_a_run_without_events_stores_no_log() -> None:
    blobs = MemoryBlobStore()
    handler = job_log(blobs)
    handler(received(a_task()))
    artifact = Artifact(Location("models", "models/style_1.safetensors"), "5f" * 32, 1)
    handler(JobCompleted(task_id="another", style_id=1, artifact=artifact))
    handler.handle(line_of(TASK_ID, "another worker holds the lease"))
    handler(settled(a_task(), Ack()))
    assert not blobs.blobs


def test_a_long_log_is_cut_in_the_middle() -> None:
    blobs = MemoryBlobStore()
    handler = job_log(blobs, max_bytes=10_000)
    handler(received(a_task()))
    handler(STARTED)
    for number in range(1000):
        # Now and then a long one, which does not fit into the beginning where a short one would.
        handler.handle(line_of(TASK_ID, "%d %s", number, "“" * (1000 if number % 7 == 5 else 5)))
    handler(settled(a_task(), Ack()))
    (data,) = blobs.blobs.values()
    messages = [json.loads(line)["message"] for line in data.decode().splitlines()]
    (gap,) = [message for message in messages if message.endswith("left out")]
    assert int(gap.split()[0]) == 1000 - (len(messages) - 1)
    numbers = [int(message.split()[0]) for message in messages if message != gap]
    assert (numbers[0], numbers[-1]) == (0, 999)
    assert numbers == sorted(numbers)
    assert 4_000 < len(data) < 10_200


def test_the_last_line_is_kept_whatever_its_length() -> None:
    blobs = MemoryBlobStore()
    handler = job_log(blobs, max_bytes=1000)
    handler(received(a_task()))
    handler(STARTED)
    handler.handle(line_of(TASK_ID, "x" * 5000))
    handler(settled(a_task(), Ack()))
    (data,) = blobs.blobs.values()
    assert json.loads(data)["message"] == "x" * 5000


def test_a_job_without_log_lines_stores_no_log() -> None:
    blobs = MemoryBlobStore()
    handler = job_log(blobs)
    handler(received(a_task()))
    handler(STARTED)
    handler(settled(a_task(), Ack()))
    assert not blobs.blobs


def test_a_line_that_cannot_be_encoded_loses_no_other_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            if record.msg == "broken":
                raise RuntimeError("no form for it")
            return record.msg

    blobs = MemoryBlobStore()
    handler = JobLog(put_log(blobs), ManualClock(), "w" * 300)
    handler.setFormatter(Broken())
    handler(received(a_task()))
    handler(STARTED)
    for message in ("broken", "no Unicode: \udcff"):
        handler.handle(line_of(TASK_ID, message))
    handler(settled(a_task(), Ack()))
    ((at, data),) = blobs.blobs.items()
    assert data == b"no Unicode: ?\n"
    assert len(at.name) <= 255, "whatever a machine calls itself"
    assert "no form for it" in capsys.readouterr().err


def test_an_unavailable_store_loses_the_log_and_not_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Away(MemoryBlobStore):
        def put(self, *args: Any, **kwargs: Any) -> str:
            raise BlobUnavailable("no connection")

    handler = job_log(Away())
    handler(received(a_task()))
    handler(STARTED)
    handler.handle(line_of(TASK_ID, "a line"))
    handler(settled(a_task(), Ack()))
    assert "was not stored: no connection" in caplog.text


def test_concurrent_jobs_store_separate_logs(collector: Collector) -> None:
    blobs, context = MemoryBlobStore(), LogContext("host/1")
    handler = job_log(blobs)
    handler.addFilter(context)
    root, together = logging.getLogger(), threading.Barrier(2, timeout=30)
    listeners = EventBus(context, handler)

    def work(style_id: int) -> None:
        task = replace(a_task(), task_id=f"task-{style_id}", style_id=style_id)
        listeners(received(task))
        listeners(replace(STARTED, task_id=task.task_id, style_id=style_id))
        for number in range(200):
            together.wait()
            log.info("%d, line %d", style_id, number)
        log.info("%d finished", style_id)
        listeners(settled(task, Ack()))
        together.wait()
        log.info("%d after", style_id)

    root.addHandler(handler)
    workers = [threading.Thread(target=work, args=(style_id,)) for style_id in (1, 2)]
    for worker in workers:
        worker.start()
    log.info("of no job")
    for worker in workers:
        worker.join()
    root.removeHandler(handler)
    stored = {
        at.key.split("/")[1]: [json.loads(line)["message"] for line in data.decode().splitlines()]
        for at, data in blobs.blobs.items()
    }
    assert stored == {
        f"task-{n}": [*(f"{n}, line {number}" for number in range(200)), f"{n} finished"]
        for n in (1, 2)
    }


def test_two_runs_of_a_job_store_two_logs() -> None:
    blobs, clock = MemoryBlobStore(), ManualClock()
    handler = JobLog(put_log(blobs), clock, "w")
    handler.setFormatter(JsonFormatter(Redactor()))
    for _ in range(2):
        handler(received(a_task()))
        handler(STARTED)
        handler.handle(line_of(TASK_ID, "a line"))
        handler(settled(a_task(), Ack()))
        clock.advance(60)
    assert len(blobs.blobs) == 2

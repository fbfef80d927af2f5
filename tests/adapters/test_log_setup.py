"""Log handlers and formats."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.logs.job_log import JobLog
from adapters.logs.setup import start_logging
from adapters.memory import ManualClock, MemoryBlobStore
from application.event_bus import EventBus
from application.settlement import Ack
from domain.events import JobStarted
from tests.application.world import TASK_ID, World, a_task, received, settled

TOKEN = "a-token-of-32-characters-or-more!"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.captureWarnings(False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_json_and_a_terminal_gets_text() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    start_logging(level="INFO", stream=pipe)
    logging.getLogger("x").info("first")
    start_logging(level="INFO", stream=terminal)
    logging.getLogger("x").error("second")
    assert json.loads(pipe.getvalue())["message"] == "first", "and nothing of the second"
    assert "\x1b[31mERROR" in terminal.getvalue()
    assert "second" in terminal.getvalue()


def test_the_log_format_can_be_chosen() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    start_logging(level="INFO", form="text", stream=pipe)
    logging.getLogger("x").info("first")
    start_logging(level="INFO", form="json", stream=terminal)
    logging.getLogger("x").info("second")
    assert pipe.getvalue().endswith("INFO    first\n")
    assert json.loads(terminal.getvalue())["message"] == "second"


def test_no_color_disables_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    start_logging(level="INFO", stream=terminal)
    logging.getLogger("x").error("hot")
    assert "ERROR   hot" in terminal.getvalue()


def test_secrets_and_library_debug_lines_are_not_logged() -> None:
    pipe = io.StringIO()
    start_logging(level="DEBUG", secrets=[TOKEN], stream=pipe)
    logging.getLogger("x").info("with %s", TOKEN)
    logging.getLogger("botocore.auth").debug("signing")
    logging.getLogger("pika").info("connecting")
    logging.getLogger("pika.adapters").error("with a traceback, at DEBUG only")
    assert TOKEN not in pipe.getvalue()
    assert len(pipe.getvalue().splitlines()) == 2
    start_logging(level="INFO", stream=pipe)
    logging.getLogger("pika.adapters").error("logged by our own adapter in one line")
    assert len(pipe.getvalue().splitlines()) == 2


def test_the_log_of_a_job_has_the_same_lines_and_is_stored() -> None:
    pipe, blobs = io.StringIO(), MemoryBlobStore()
    logs = start_logging(level="INFO", secrets=[TOKEN], stream=pipe)
    logs.context.worker = "worker-1"
    job_log = JobLog(World().store(blobs=blobs).put_log, ManualClock(), "worker-1")
    logs.also_to(job_log)
    events = EventBus(logs.context, job_log)
    events(received(a_task()))
    events(JobStarted(task_id=TASK_ID, style_id=7, attempt=1, resumed_from=None))
    logging.getLogger("x").info("with %s", TOKEN)
    events(settled(a_task(), Ack()))
    (stored,) = blobs.blobs.values()
    assert stored.decode() == pipe.getvalue()
    line = json.loads(stored)
    assert (line["worker"], line["task_id"], line["attempt"]) == ("worker-1", TASK_ID, 1)


def test_uncaught_exceptions_of_process_and_threads_are_logged() -> None:
    code = (
        "import threading\n"
        "from adapters.logs.setup import log_uncaught_exceptions, start_logging\n"
        f"start_logging(level='INFO', secrets=[{TOKEN!r}])\n"
        "log_uncaught_exceptions()\n"
        f"thread = threading.Thread(target=lambda: 1 / 0, name='fetch')\n"
        "thread.start(); thread.join()\n"
        f"raise RuntimeError('refused ' + {TOKEN!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    thread, process = (json.loads(line) for line in done.stderr.splitlines())
    assert thread["level"] == process["level"] == "CRITICAL"
    assert "thread fetch ends" in thread["message"]
    assert "ZeroDivisionError" in thread["exception"]
    assert TOKEN not in done.stderr


def test_a_line_of_the_hub_client_is_logged_once_in_our_format() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from adapters.logs.setup import start_logging\n"
            "from adapters.logs.libraries import quiet_libraries\n"
            "quiet_libraries(); start_logging(level='INFO', form='json')\n"
            "from huggingface_hub.utils import logging\n"
            "logging.get_logger('huggingface_hub.x').warning('no hub')\n",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["no hub"]

"""Serve a worker's status page; its data and readiness checks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from adapters.metrics.gpus import GpuCollector
from adapters.metrics.queue import DepthGauges
from adapters.nvml import GpuReader
from adapters.status_page.app import Check, CheckResult, Sources, build_app
from adapters.status_page.server import StatusServer
from adapters.status_page.state import WorkerState
from application.circuit_breaker import CircuitBreaker
from entrypoints.bootstrap import Container
from entrypoints.connections import queue_place
from entrypoints.folders import free_space, work_folder
from entrypoints.settings import Settings, is_secret

log = logging.getLogger(__name__)

POLL_SECONDS = 15.0
"""Seconds between reads of the queue depths."""
OLD_SECONDS = 4 * POLL_SECONDS
"""Age of the queue depths from which the broker counts as unreachable."""


@contextmanager
def serving(container: Container) -> Iterator[None]:
    """Serve health, metrics and the page while open, even before the base model is loaded.

    Raises:
        AddressTaken: STATUS_HOST and STATUS_PORT cannot be listened on.
    """
    settings, metrics, state = container.settings(), container.metrics(), container.worker_state()
    read_cards = GpuReader()
    GpuCollector(read_cards, metrics.registry)
    gauges = DepthGauges(container.queue_depths(), metrics, container.clock().monotonic)
    sources = Sources(
        worker_state=state,
        previews=container.preview_cache(),
        registry=metrics.registry,
        checks=[
            work_check(state, container.circuit_breaker()),
            model_check(state),
            broker_check(gauges, queue_place(settings)),
            disk_check(work_folder(settings), settings.min_disk_gb),
        ],
        cards=read_cards,
        queues=lambda: queue_facts(gauges),
        configuration=visible_settings(settings),
        redact=container.logs().redact.deep,
    )
    with polling(gauges), _served(sources, settings):
        yield


@contextmanager
def _served(sources: Sources, settings: Settings) -> Iterator[None]:
    if settings.status_port == 0:
        yield
        return
    token = settings.status_token.get_secret_value() if settings.status_token else None
    app = build_app(sources, host=settings.status_host, token=token)
    with StatusServer(app, settings.status_host, settings.status_port) as url:
        log.info("status page: %s", url)
        yield


def model_check(worker_state: WorkerState) -> Check:
    """Whether the base model is loaded."""

    def look() -> CheckResult:
        if worker_state.model is None:
            return CheckResult(False, "the base model is being loaded")
        return CheckResult(True, worker_state.model)

    return Check("Base model", look)


def broker_check(gauges: DepthGauges, where: str) -> Check:
    """Whether the queue was reachable recently.

    Args:
        where: the broker or folder for display, without a password.
    """

    def look() -> CheckResult:
        age = gauges.age
        if gauges.trouble is not None:
            return CheckResult(False, f"{where}: {gauges.trouble}")
        if age is None or age > OLD_SECONDS:
            return CheckResult(False, f"{where} has not responded for {age or 0:.0f} s")
        return CheckResult(True, f"{where} responds")

    return Check("Queue", look)


def disk_check(folder: Path, min_gigabytes: float) -> Check:
    """Whether there is free space for downloaded models and the worker's own files."""

    def look() -> CheckResult:
        return CheckResult(*free_space(folder, min_gigabytes))

    return Check("Disk", look)


def work_check(worker_state: WorkerState, circuit_breaker: CircuitBreaker | None = None) -> Check:
    """Whether the worker receives tasks."""

    def look() -> CheckResult:
        if circuit_breaker is not None and (trouble := circuit_breaker.trouble) is not None:
            return CheckResult(False, trouble)
        if worker_state.stopping:
            return CheckResult(False, "the worker is stopping and receives no further tasks")
        return CheckResult(True, "the worker receives tasks")

    return Check("Worker", look)


def queue_facts(gauges: DepthGauges) -> dict[str, Any]:
    """The queue depths in the page's form."""
    return {"depths": dict(gauges.depths), "trouble": gauges.trouble, "age": gauges.age}


def visible_settings(settings: BaseModel) -> list[dict[str, str]]:
    """Every setting's name, value and meaning; for secrets only whether they are set."""
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        rows.append(
            {
                "name": name.upper(),
                "value": _shown(value, secret=is_secret(field)),
                "meaning": (field.description or "").replace("`", ""),
            }
        )
    return rows


def _shown(value: Any, *, secret: bool) -> str:
    if secret:
        return "not set" if value is None else "set"
    if value is None or value == ():
        return "not set"
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    return without_password(str(value))


def without_password(text: str) -> str:
    """A URL without user and password; any other text unchanged."""
    if "://" not in text:
        return text
    parts = urlsplit(text)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextmanager
def polling(gauges: DepthGauges, seconds: float = POLL_SECONDS) -> Iterator[None]:
    """Read the queue depths now and every ``seconds``, in the background.

    Leaving does not wait for a running read: an unresponsive broker must not delay the worker's
    exit.
    """
    closed = threading.Event()

    def poll() -> None:
        while True:
            gauges.poll()
            if closed.wait(seconds):
                return

    threading.Thread(target=poll, name="queue depths", daemon=True).start()
    try:
        yield
    finally:
        closed.set()

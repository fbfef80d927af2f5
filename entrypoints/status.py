"""Serve a worker's status page; its data and readiness checks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from adapters.common.files import free_space
from adapters.metrics.gpus import GpuCollector
from adapters.metrics.queue import DepthGauges
from adapters.nvml import GpuReader
from adapters.status_page.app import Sources, build_app
from adapters.status_page.configuration import visible_settings
from adapters.status_page.server import StatusServer
from adapters.status_page.state import WorkerState
from application.circuit_breaker import CircuitBreaker
from entrypoints.bootstrap import Container
from entrypoints.connections import queue_place
from entrypoints.settings import visible_gpus

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
    read_gpus = GpuReader(visible_gpus())
    GpuCollector(read_gpus, metrics.registry)
    gauges = DepthGauges(container.queue_depths(), metrics, container.clock().monotonic)
    sources = Sources(
        worker_state=state,
        previews=container.preview_cache(),
        registry=metrics.registry,
        checks={
            "Worker": partial(work_check, state, container.circuit_breaker()),
            "Base model": partial(model_check, state),
            "Queue": partial(broker_check, gauges, queue_place(settings)),
            "Disk": partial(free_space, settings.work_folder, settings.min_disk_gb),
        },
        gpus=read_gpus,
        queues=lambda: {
            "depths": dict(gauges.depths),
            "trouble": gauges.trouble,
            "age": gauges.age,
        },
        configuration=visible_settings(settings),
        redact=container.logs().redact.deep,
    )
    with gauges.polling(POLL_SECONDS):
        if settings.status_port == 0:
            yield
            return
        token = settings.status_token.get_secret_value() if settings.status_token else None
        app = build_app(sources, host=settings.status_host, token=token)
        with StatusServer(app, settings.status_host, settings.status_port) as url:
            log.info("status page: %s", url)
            yield


def model_check(worker_state: WorkerState) -> tuple[bool, str]:
    """Whether the base model is loaded."""
    return worker_state.model is not None, worker_state.model or "the base model is being loaded"


def broker_check(gauges: DepthGauges, where: str) -> tuple[bool, str]:
    """Whether the queue was reachable recently.

    Args:
        where: the broker or folder for display, without a password.
    """
    if gauges.trouble is not None:
        return False, f"{where}: {gauges.trouble}"
    if gauges.age is None or gauges.age > OLD_SECONDS:
        return False, f"{where} has not responded for {gauges.age or 0:.0f} s"
    return True, f"{where} responds"


def work_check(worker_state: WorkerState, circuit_breaker: CircuitBreaker) -> tuple[bool, str]:
    """Whether the worker receives tasks."""
    if (trouble := circuit_breaker.pause_reason) is not None:
        return False, trouble
    if worker_state.stopping:
        return False, "the worker is stopping and receives no further tasks"
    return True, "the worker receives tasks"

"""Everything that looks on while a worker works: logs, metrics, and the status page."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dependency_injector import providers

from adapters.logs.job_log import JobLog
from adapters.metrics.blobs import MeteredBlobStore
from adapters.metrics.gpus import GpuCollector
from adapters.metrics.instruments import Metrics
from adapters.metrics.jobs import JobMetrics
from adapters.metrics.notifier import MeteredNotifier
from adapters.metrics.queue import DepthGauges, MeteredQueue
from adapters.nvml import GpuReader
from adapters.status_page.app import Sources, build_app
from adapters.status_page.previews import PreviewCache, PreviewingTrainer
from adapters.status_page.server import StatusServer
from adapters.status_page.state import WorkerState
from application.event_bus import EventBus
from application.job_store import JobStore
from application.log_events import log_event
from application.stop_signal import StopSignal
from entrypoints import status
from entrypoints.cli import version
from entrypoints.container import build_trainer, queue_place
from entrypoints.logs import Logging

if TYPE_CHECKING:
    from adapters.diffusion.base.model import BaseModel
    from entrypoints.container import Container
    from entrypoints.settings import Settings

log = logging.getLogger(__name__)


def start_sentry(settings: Settings, logs: Logging) -> None:
    """Send errors to Sentry, where there is one."""
    if settings.sentry_dsn is None:
        return
    from adapters.logs.sentry import start_sentry as start

    start(
        settings.sentry_dsn.get_secret_value(),
        version=version(),
        context=logs.context,
        redact=logs.redact,
    )


def start_cloudwatch(settings: Settings, logs: Logging, worker: str) -> None:
    """Send the log lines to CloudWatch, where a group is named."""
    if settings.cloudwatch_log_group is None:
        return
    from adapters.logs.cloudwatch import CloudWatchOptions, cloudwatch_handler

    secret, token = settings.aws_secret_access_key, settings.aws_session_token
    options = CloudWatchOptions(
        group=settings.cloudwatch_log_group,
        stream=worker,
        region=settings.aws_s3_region_name,
        access_key_id=settings.aws_access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
        session_token=token.get_secret_value() if token else None,
    )
    logs.also_to(cloudwatch_handler(options))


@contextmanager
def observed(container: Container, logs: Logging, stop: StopSignal) -> Iterator[WorkerState]:
    """Put the measuring decorators around the container's ports, and serve what they see.

    To be entered before anything is made that uses the ports. The page is there at once, while
    the base model is being loaded.

    Raises:
        AddressTaken: nothing can listen at STATUS_HOST and STATUS_PORT.
    """
    settings, clock, keys = container.settings(), container.clock(), container.keys()
    worker = container.worker()
    metrics = Metrics(worker, version())
    read_cards = GpuReader()
    GpuCollector(read_cards, metrics.registry)
    jobs = JobMetrics(metrics, clock.monotonic)
    worker_state = WorkerState(worker, version(), clock, lambda: stop.reason is not None)
    previews = PreviewCache()
    gauges = DepthGauges(container.queue_depths(), metrics, clock.monotonic)

    logs.context.worker = worker
    files = JobStore(
        blobs=container.blobs(), keys=keys, clock=clock, events=lambda _event: None, worker=worker
    )
    job_log = JobLog(files.put_log, clock, worker)
    logs.also_to(job_log)

    # Each is made from the one that it takes the place of.
    container.queue.override(providers.Object(MeteredQueue(container.queue(), metrics)))
    container.blobs.override(
        providers.Object(
            MeteredBlobStore(container.blobs(), metrics, clock, keys.leased_task, jobs)
        )
    )
    container.notifier.override(
        providers.Object(MeteredNotifier(container.notifier(), metrics, clock.monotonic))
    )
    container.trainer.override(
        providers.Singleton(
            _trainer, settings, container.base_model, container.devices, container.slots, previews
        )
    )
    container.events.override(
        providers.Object(EventBus(logs.context, log_event, jobs, worker_state, job_log))
    )

    sources = Sources(
        worker_state=worker_state,
        previews=previews,
        registry=metrics.registry,
        checks=[
            status.work_check(worker_state),
            status.model_check(worker_state),
            status.broker_check(gauges, queue_place(settings)),
            status.disk_check(_work_folder(settings), settings.min_disk_gb),
        ],
        cards=read_cards,
        queues=lambda: status.queue_facts(gauges),
        configuration=status.visible_settings(settings),
        redact=logs.redact.deep,
    )
    with status.polling(gauges), _served(sources, settings):
        yield worker_state


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


def _trainer(
    settings: Settings,
    base: BaseModel,
    devices: Sequence[str],
    slots: int,
    previews: PreviewCache,
) -> PreviewingTrainer:
    return PreviewingTrainer(build_trainer(settings, base, devices, slots), previews)


def _work_folder(settings: Settings) -> Path:
    """Where this worker may run out of room."""
    return Path(tempfile.gettempdir()) if settings.has_s3 else settings.storage_folder

"""Which adapter serves which port: the one place that puts the hexagon together."""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dependency_injector import containers, providers
from rich.console import Console

from adapters.clock import SystemClock
from adapters.console import ConsoleNotifier
from adapters.filesystem import FileBlobStore
from adapters.images.decode import decode
from adapters.images.isolated import IsolatedInspector
from adapters.report.reporter import HtmlReporter
from adapters.schemas.bodies import complete_body, failed_body, progress_body
from adapters.schemas.task import TaskReader
from adapters.spool import SpoolQueue
from application.fetch_images import fetch_images
from application.job_store import JobStore
from application.lease import LeaseTerms
from application.log_events import log_event
from application.notify_outcome import OutcomeNotifier
from application.ports import BlobStore, ImageInspector, Notifier, TaskParser
from application.reject_invalid_task import RejectInvalidTask
from application.run_training import RunTraining
from application.slots import AdmissionQueue
from application.stop_signal import StopSignal
from application.storage_keys import StorageKeys
from application.style_report import ReportWriter
from application.training_loop import TrainingLoop
from application.worker_config import WorkerConfig
from application.worker_loop import WorkerLoop
from application.worker_pool import WorkerPool
from domain.image import ImageSet
from domain.location import Location
from domain.task import InvalidTask, TrainingTask, check_size
from entrypoints.cli import version
from entrypoints.default_base import load_base_model
from entrypoints.devices import choose_devices, choose_slots
from entrypoints.settings import Settings

if TYPE_CHECKING:
    from adapters.diffusion.base.model import BaseModel
    from adapters.diffusion.trainer import DiffusionTrainer
    from adapters.rabbitmq.options import RabbitOptions
    from adapters.rabbitmq.queue import RabbitQueue

SPARE_CONNECTIONS = 4
"""A job's to the store, beside those that fetch images: lease, cancellation, journal,
checkpoint."""


def build_trainer(
    settings: Settings, base: BaseModel, devices: Sequence[str], slots: int
) -> DiffusionTrainer:
    """The trainer on these devices. The base model is on the first; each run loads it on the
    others."""
    from adapters.diffusion.data_parallel import OtherRanks
    from adapters.diffusion.trainer import DiffusionTrainer

    device, *others = devices
    ranks = OtherRanks(others, partial(load_base_model, settings), decode)
    start_ranks = ranks.started if others else None
    return DiffusionTrainer(base, decode, device, slots=slots, start_ranks=start_ranks)


def build_worker_pool(loop: WorkerLoop, slots: int) -> WorkerPool:
    """A loop for each slot. Each has leases of its own, and so a name of its own."""
    if slots == 1:
        return WorkerPool([loop])
    return WorkerPool([_named(loop, f"-slot{slot}") for slot in range(slots)])


def _named(loop: WorkerLoop, suffix: str) -> WorkerLoop:
    run, reject = loop.run, loop.reject
    assert isinstance(run, RunTraining)
    assert isinstance(reject, RejectInvalidTask)
    store = replace(run.store, worker=run.store.worker + suffix)
    return replace(loop, run=replace(run, store=store), reject=replace(reject, store=store))


def worker_name(settings: Settings, new_id: Callable[[], str]) -> str:
    """A name that no other worker has, not even this one's next process."""
    return settings.worker_name or f"{socket.gethostname()}-{os.getpid()}-{new_id()[:8]}"


def bucket_folders(settings: Settings, *, supplies: bool = False) -> dict[str, Path]:
    """The folders that stand for buckets; ``supplies`` as ``open_blobs`` has it."""
    names = {settings.model_bucket_name, *settings.image_buckets}
    if supplies:
        names.add(settings.aws_storage_bucket_name)
    return {name: settings.storage_folder / name for name in names}


def open_queue(
    settings: Settings, clock: SystemClock, worker: str, slots: int
) -> Iterator[RabbitQueue | SpoolQueue]:
    """The queue of tasks, closed when the container is."""
    if not settings.has_broker:
        yield SpoolQueue(settings.spool_dir, clock, new_id)
        return
    from adapters.rabbitmq.queue import RabbitQueue

    options = broker_options(settings, slots)
    with closing(RabbitQueue(options, worker=worker, clock=clock, random=random.random)) as queue:
        yield queue


def broker_options(settings: Settings, slots: int = 1) -> RabbitOptions:
    """Where the broker is and how to treat it.

    Args:
        slots: messages that are in hand at a time.
    """
    from adapters.rabbitmq.options import RabbitOptions, TlsOptions

    tls = TlsOptions(
        ca_file=settings.rabbitmq_ca_file,
        certificate=settings.rabbitmq_cert_file,
        key=settings.rabbitmq_key_file,
    )
    if settings.rabbitmq_url is not None:
        url = settings.rabbitmq_url.get_secret_value()
        encrypted = url.startswith("amqps:")
        options = RabbitOptions.from_url(url, tls=tls if encrypted else None)
    else:
        options = RabbitOptions(
            host=settings.rabbitmq_host or "",
            port=settings.rabbitmq_port,
            vhost=settings.rabbitmq_vhost,
            user=settings.rabbitmq_user,
            password=settings.rabbitmq_pass.get_secret_value(),
            tls=tls if settings.rabbitmq_ssl else None,
        )
    return replace(
        options,
        queue=settings.rabbitmq_queue,
        retry_delays=settings.retry_delays,
        heartbeat=settings.rabbitmq_heartbeat,
        ack_timeout=float(settings.ack_timeout),
        prefetch=slots,
    )


def queue_place(settings: Settings) -> str:
    """Where tasks come from, for people: without credentials."""
    if not settings.has_broker:
        return f"the folder {settings.spool_dir}"
    options = broker_options(settings)
    return f"{options.queue} at {options.where}"


def open_blobs(
    settings: Settings, clock: SystemClock, *, slots: int = 1, supplies: bool = False
) -> BlobStore:
    """Where blobs lie: S3, or folders.

    Args:
        slots: jobs that are in hand at a time.
        supplies: the images' bucket is to be written, too, as whoever submits a folder does.
    """
    if not settings.has_s3:
        return FileBlobStore(bucket_folders(settings, supplies=supplies))
    from adapters.s3.options import S3Options
    from adapters.s3.store import S3BlobStore

    secret, token = settings.aws_secret_access_key, settings.aws_session_token
    options = S3Options(
        endpoint_url=settings.s3_endpoint_url,
        region=settings.aws_s3_region_name,
        access_key_id=settings.aws_access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
        session_token=token.get_secret_value() if token else None,
        max_pool_connections=slots * (settings.fetch_concurrency + SPARE_CONNECTIONS),
    )
    writable = {settings.model_bucket_name}
    if supplies:
        writable.add(settings.aws_storage_bucket_name)
    return S3BlobStore(
        options, readable=settings.image_buckets, writable=writable, sleep=clock.sleep
    )


def open_notifier(settings: Settings, console: Console, clock: SystemClock) -> Iterator[Notifier]:
    """Who is told: the backend, or the person at the terminal."""
    if settings.backend_api_url is None or settings.internal_api_token is None:
        yield ConsoleNotifier(console)
        return
    from adapters.webhook.notifier import Bodies, WebhookNotifier
    from adapters.webhook.options import WebhookOptions

    options = WebhookOptions(
        base_url=settings.backend_api_url,
        token=settings.internal_api_token.get_secret_value(),
        user_agent=f"style-trainer/{version()}",
        ca_file=settings.backend_ca_file,
        read_timeout=settings.webhook_timeout,
    )
    bodies = Bodies(progress=progress_body, complete=complete_body, failed=failed_body)
    with closing(WebhookNotifier(options, bodies, clock)) as notifier:
        yield notifier


def backend_host(settings: Settings) -> str | None:
    """The one host that the token may go to."""
    return urlsplit(settings.backend_api_url).hostname if settings.backend_api_url else None


def task_parser(settings: Settings) -> TaskParser:
    """Reads tasks. Those that would take days are refused, and so are images from the bucket of
    models, unless it is allowed: the store cannot tell, since it reads that bucket for us.
    """
    read = TaskReader(backend_host(settings))
    closed = {settings.model_bucket_name}.difference(settings.image_buckets)

    def parse(body: bytes) -> TrainingTask:
        task = read(body)
        for number, image in enumerate(task.images):
            if image.bucket in closed:
                remedy = f"give images from {', '.join(settings.image_buckets)}"
                field = f"data.images.{number}"
                raise InvalidTask(field, str(image), remedy, task.style_id, task.task_id)
        check_size(task, max_steps=settings.max_job_steps, max_resolution=settings.max_resolution)
        return task

    return parse


def worker_config(settings: Settings) -> WorkerConfig:
    """The use cases' figures, as the settings give them."""
    return WorkerConfig(
        min_images=settings.min_images,
        checkpoint_every=settings.checkpoint_every,
        preview_share=settings.preview_share,
        keep_checkpoints=settings.keep_checkpoints,
        progress_every=settings.progress_every,
        in_transit=settings.webhook_timeout,
        cancel_poll=settings.cancel_poll,
        max_failures=settings.max_failures,
        fetch_concurrency=settings.fetch_concurrency,
        lease=LeaseTerms(settings.lease_seconds),
    )


def image_fetcher(
    blobs: BlobStore, inspector: ImageInspector, config: WorkerConfig
) -> Callable[[tuple[Location, ...], int, StopSignal], ImageSet]:
    """Fetches and checks a task's images."""

    def fetch(images: tuple[Location, ...], resolution: int, stop: StopSignal) -> ImageSet:
        return fetch_images(images, resolution, blobs, inspector, config, stop)

    return fetch


def new_id() -> str:
    """A fresh identifier."""
    return uuid.uuid4().hex


def open_uploads(slots: int) -> Iterator[Executor]:
    """Threads that store checkpoints, one a job. What is on its way at the end is waited for: by
    whoever closes the container, who knows how long."""
    with ThreadPoolExecutor(slots, "checkpoints") as executor:
        yield executor


@contextmanager
def open_container(settings: Settings) -> Iterator[Container]:
    """A worker's parts; what holds a connection is closed at the end."""
    container = Container(settings=settings)
    try:
        yield container
    finally:
        container.shutdown_resources()


class Container(containers.DeclarativeContainer):
    """A worker's parts. What another entry point wants differently, it overrides."""

    settings: providers.Dependency[Settings] = providers.Dependency(instance_of=Settings)

    console = providers.Singleton(Console)
    clock = providers.Singleton(SystemClock)
    events = providers.Object(log_event)
    config = providers.Singleton(worker_config, settings)
    worker = providers.Singleton(worker_name, settings, new_id)
    keys = providers.Singleton(StorageKeys, settings.provided.model_bucket_name)

    devices = providers.Singleton(choose_devices, settings)
    device = devices.provided[0]
    slots = providers.Singleton(choose_slots, settings, devices.provider)
    blobs = providers.Singleton(open_blobs, settings, clock, slots=slots)
    queue = providers.Resource(open_queue, settings, clock, worker, slots)
    dead_letters = queue_depths = queue
    notifier = providers.Resource(open_notifier, settings, console, clock)
    inspector = providers.Singleton(IsolatedInspector)
    reporter = providers.Singleton(HtmlReporter, providers.Object(decode))
    parse_task = providers.Singleton(task_parser, settings)

    base_model = providers.Singleton(load_base_model, settings, device)
    trainer = providers.Singleton(build_trainer, settings, base_model, devices, slots)

    uploads = providers.Resource(open_uploads, slots)
    store = providers.Singleton(
        JobStore,
        blobs=blobs,
        keys=keys,
        clock=clock,
        events=events,
        worker=worker,
        lease_terms=config.provided.lease,
    )
    fetch_images = providers.Singleton(image_fetcher, blobs, inspector, config)
    admission = providers.Singleton(AdmissionQueue, slots)
    training_loop = providers.Singleton(
        TrainingLoop, store=store, notifier=notifier, clock=clock, config=config, uploads=uploads
    )
    write_report = providers.Singleton(ReportWriter, store=store, reporter=reporter)
    notify_outcome = providers.Singleton(
        OutcomeNotifier, notifier=notifier, clock=clock, random=providers.Object(random.random)
    )
    run_training = providers.Singleton(
        RunTraining,
        store=store,
        fetch_images=fetch_images,
        trainer=trainer,
        slots=admission,
        loop=training_loop,
        write_report=write_report,
        notify_outcome=notify_outcome,
        config=config,
    )
    reject_invalid_task = providers.Singleton(
        RejectInvalidTask, store=store, notify_outcome=notify_outcome, config=config
    )
    worker_loop = providers.Singleton(
        WorkerLoop,
        queue=queue,
        parse=parse_task,
        run=run_training,
        reject=reject_invalid_task,
        clock=clock,
        events=events,
    )
    worker_pool = providers.Singleton(build_worker_pool, worker_loop, slots)

"""The connections that the settings name: queue, store and backend."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console

from adapters.clock import SystemClock
from adapters.console import ConsoleNotifier
from adapters.filesystem import FileBlobStore
from adapters.schemas.bodies import complete_body, failed_body, progress_body
from adapters.schemas.task import TaskReader
from adapters.spool import SpoolQueue
from application.ports import BlobStore, InitialLora, Notifier, TaskParser
from domain.location import FORMS, InvalidLocation, Location
from domain.task import InvalidTask, TrainingTask, check_size
from entrypoints.cli import version
from entrypoints.settings import Settings

if TYPE_CHECKING:
    from adapters.rabbitmq.options import RabbitOptions
    from adapters.rabbitmq.queue import RabbitQueue

MAX_LORA_BYTES = 512 * 1024**2
"""Of a LoRA that a task starts from: rank 256 on every layer has 400 MB."""
SPARE_CONNECTIONS = 4
"""A job's to the store, beside those that fetch images: lease, cancellation, journal,
checkpoint."""


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
    """The backend, or the terminal where no backend is configured."""
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
    """Reads tasks. Rejects those that are too large for this worker, and images from the bucket of
    models where ALLOWED_IMAGE_BUCKETS does not name it: the store itself would read them.
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
        _check_network_weights(task, {settings.model_bucket_name, *settings.image_buckets})
        check_size(task, max_steps=settings.max_job_steps, max_resolution=settings.max_resolution)
        return task

    return parse


def _check_network_weights(task: TrainingTask, readable: set[str]) -> None:
    text = task.requested.named.get("network_weights")
    if text is None:
        return
    try:
        if Location.parse(text).bucket in readable:
            return
    except InvalidLocation:
        pass
    remedy = f"give {FORMS} of a LoRA in one of these buckets: {', '.join(sorted(readable))}"
    field = "data.parameters.network_weights"
    raise InvalidTask(field, repr(text), remedy, task.style_id, task.task_id)


def lora_loader(blobs: BlobStore) -> Callable[[str], InitialLora]:
    """Fetches the LoRA that a task names."""

    def load(text: str) -> InitialLora:
        from adapters.diffusion.lora_files.warm_start import initial_from_bytes

        return initial_from_bytes(blobs.get(Location.parse(text), max_bytes=MAX_LORA_BYTES).data)

    return load


def new_id() -> str:
    """A fresh identifier."""
    return uuid.uuid4().hex

"""Open the configured queue and backend. ``stores`` opens the stores."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console

from adapters.clock import SystemClock
from adapters.console.notifier import ConsoleNotifier
from adapters.schemas.bodies import complete_body, failed_body, progress_body
from adapters.schemas.task import TaskReader
from adapters.spool import SpoolQueue
from application.ports import BlobStore, Notifier, TaskParser
from domain.location import FORMS, InvalidLocation, Location
from domain.task import InvalidTask, TrainingTask, check_size
from domain.training_plan import InitialLora
from entrypoints.cli import version
from entrypoints.settings import Settings

if TYPE_CHECKING:
    from adapters.rabbitmq.options import RabbitOptions
    from adapters.rabbitmq.queue import RabbitQueue

MAX_LORA_BYTES = 512 * 1024**2
"""Largest initial LoRA: one with rank 256 on every layer has 400 MB."""
NOT_IN_A_FOLDER = ("train_text_encoder", "use_dora")
"""Parameters whose styles ``PeftModel.from_pretrained(unet, folder)`` of PEFT 0.7 fails to load or
renders wrongly."""


def open_queue(
    settings: Settings, clock: SystemClock, worker: str, slots: int
) -> Iterator[RabbitQueue | SpoolQueue]:
    """Open the queue of tasks, and close it with the container."""
    if not settings.has_broker:
        yield SpoolQueue(settings.spool_dir, clock, new_id)
        return
    from adapters.rabbitmq.queue import RabbitQueue

    options = broker_options(settings, slots)
    with closing(RabbitQueue(options, worker=worker, clock=clock, random=random.random)) as queue:
        yield queue


def broker_options(settings: Settings, slots: int = 1) -> RabbitOptions:
    """The broker's address and connection options.

    Args:
        slots: number of messages processed at the same time.
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
    """The queue's address for display, without credentials."""
    if not settings.has_broker:
        return f"the folder {settings.spool_dir}"
    options = broker_options(settings)
    return f"{options.queue} at {options.where}"


def open_notifier(settings: Settings, console: Console, clock: SystemClock) -> Iterator[Notifier]:
    """Open the backend's webhook client, or a notifier on the terminal if none is configured."""
    if settings.backend_api_url is None or settings.internal_api_token is None:
        yield ConsoleNotifier(console)
        return
    from adapters.webhook.notifier import Bodies, WebhookNotifier
    from adapters.webhook.options import WebhookOptions

    options = WebhookOptions(
        base_url=settings.backend_api_url,
        token=settings.internal_api_token.get_secret_value(),
        user_agent=f"style-trainer/{version()}",
        allow_http=settings.backend_allow_http,
        allow_short_token=settings.backend_allow_short_token,
        ca_file=settings.backend_ca_file,
        read_timeout=settings.webhook_timeout,
    )
    bodies = Bodies(progress=progress_body, complete=complete_body, failed=failed_body)
    with closing(WebhookNotifier(options, bodies, clock)) as notifier:
        yield notifier


def backend_host(settings: Settings) -> str | None:
    """The only host that may receive the token."""
    return urlsplit(settings.backend_api_url).hostname if settings.backend_api_url else None


def task_parser(settings: Settings) -> TaskParser:
    """Build the task parser. It rejects tasks that are too large for this worker, the parameters
    ``NOT_IN_A_FOLDER`` if weights are stored as folders, and images in the worker's own buckets
    unless ALLOWED_IMAGE_BUCKETS lists them (the worker's credentials give access to these).
    """
    read = TaskReader(backend_host(settings))
    closed = {settings.models, settings.state}.difference(settings.image_buckets)
    allowed = ", ".join(map(str, settings.image_buckets))

    def parse(body: bytes) -> TrainingTask:
        task = read(body)

        def invalid(field: str, value: object, remedy: str) -> InvalidTask:
            return InvalidTask(f"data.{field}", value, remedy, task.style_id, task.task_id)

        for number, image in enumerate(task.images):
            if settings.bucket_of(image) in closed:
                raise invalid(f"images.{number}", str(image), f"give images from {allowed}")
        for name in NOT_IN_A_FOLDER if settings.weights_in_folder else ():
            if task.requested.named.get(name):
                remedy = "leave it out: this platform cannot load such a style (WEIGHTS_FORM)"
                raise invalid(f"parameters.{name}", True, remedy)
        _check_network_weights(task, settings)
        check_size(task, max_steps=settings.max_job_steps, max_resolution=settings.max_resolution)
        return task

    return parse


def _check_network_weights(task: TrainingTask, settings: Settings) -> None:
    readable = {settings.models, *settings.image_buckets}
    text = task.requested.named.get("network_weights")
    if text is None:
        return
    try:
        if settings.bucket_of(Location.parse(text)) in readable:
            return
    except InvalidLocation:
        pass
    remedy = (
        f"give {FORMS} of a LoRA in one of these buckets: {', '.join(map(str, sorted(readable)))}"
    )
    field = "data.parameters.network_weights"
    raise InvalidTask(field, repr(text), remedy, task.style_id, task.task_id)


def lora_loader(blobs: BlobStore) -> Callable[[str], InitialLora]:
    """Return the function that fetches a task's initial LoRA."""

    def load(text: str) -> InitialLora:
        from adapters.lora_files.initial_lora import initial_from_bytes

        return initial_from_bytes(blobs.get(Location.parse(text), max_bytes=MAX_LORA_BYTES).data)

    return load


def new_id() -> str:
    """A new unique identifier."""
    return uuid.uuid4().hex

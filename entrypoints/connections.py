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
from adapters.rabbitmq.options import RabbitOptions, TlsOptions
from adapters.schemas.bodies import complete_body, failed_body, progress_body
from adapters.schemas.task import TaskReader, TaskRules
from adapters.spool import SpoolQueue
from adapters.webhook.options import WebhookOptions
from application.ports import BlobStore, Notifier
from domain.location import Location
from domain.training_plan import InitialLora
from entrypoints.cli import version
from entrypoints.settings import Settings
from entrypoints.stores import bucket_folders

if TYPE_CHECKING:
    from adapters.rabbitmq.queue import RabbitQueue

MAX_LORA_BYTES = 512 * 1024**2
"""Largest initial LoRA: one with rank 256 on every layer has 400 MB."""


def open_queue(
    settings: Settings, clock: SystemClock, worker: str
) -> Iterator[RabbitQueue | SpoolQueue]:
    """Open the queue of tasks, and close it with the container."""
    if not settings.has_broker:
        yield SpoolQueue(settings.spool_dir, clock, new_id)
        return
    from adapters.rabbitmq.queue import RabbitQueue

    options = broker_options(settings)
    with closing(RabbitQueue(options, worker=worker, clock=clock, random=random.random)) as queue:
        yield queue


def broker_options(settings: Settings) -> RabbitOptions:
    """The broker's address and connection options."""
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
        folders = {} if settings.has_object_store else bucket_folders(settings)
        yield ConsoleNotifier(console, folders)
        return
    from adapters.webhook.notifier import Bodies, WebhookNotifier

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


def task_parser(settings: Settings) -> TaskReader:
    """Build the task parser, which rejects tasks that break this worker's rules."""
    rules = TaskRules(
        image_buckets=settings.image_buckets,
        models=settings.models,
        own_buckets=(settings.models, settings.state),
        in_folders=not settings.has_object_store,
        weights_in_folder=settings.weights_in_folder,
        max_steps=settings.max_job_steps,
        max_resolution=settings.max_resolution,
    )
    return TaskReader(urlsplit(settings.backend_api_url or "").hostname, rules)


def lora_loader(blobs: BlobStore) -> Callable[[str], InitialLora]:
    """Return the function that fetches a task's initial LoRA."""

    def load(text: str) -> InitialLora:
        from adapters.lora_files.initial_lora import initial_from_bytes

        return initial_from_bytes(blobs.get(Location.parse(text), max_bytes=MAX_LORA_BYTES).data)

    return load


def new_id() -> str:
    """A new unique identifier."""
    return uuid.uuid4().hex

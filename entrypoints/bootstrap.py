"""Assemble a worker: the only module that binds adapters to ports."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dependency_injector import containers, providers
from rich.console import Console

from adapters.clock import SystemClock
from adapters.common.files import lack_of_space
from adapters.images.decode import decode
from adapters.images.isolated import IsolatedInspector
from adapters.logs.events import log_event
from adapters.logs.job_log import JobLog
from adapters.logs.setup import Logging, silent_logging
from adapters.metrics.calls import MeteredBlobStore, MeteredNotifier, MeteredQueue
from adapters.metrics.instruments import Metrics
from adapters.metrics.jobs import JobMetrics
from adapters.report.reporter import HtmlReporter
from adapters.status_page.previews import PreviewCache
from adapters.status_page.state import WorkerState
from application.circuit_breaker import CircuitBreaker
from application.event_bus import EventBus
from application.job_store import JobStore, StorageKeys
from application.lease import LeaseTerms
from application.notify_outcome import OutcomeNotifier
from application.plan_training import TrainingPlanner
from application.ports import BlobStore
from application.reject_invalid_task import RejectInvalidTask
from application.run_training import RunTraining
from application.slots import AdmissionQueue
from application.stop_signal import StopSignal
from application.style_report import ReportWriter
from application.training_loop import TrainingLoop
from application.worker_config import WorkerConfig
from application.worker_loop import WorkerLoop, WorkerPool
from entrypoints.cli import version
from entrypoints.connections import lora_loader, new_id, open_notifier, open_queue, task_parser
from entrypoints.devices import choose_devices, choose_slots
from entrypoints.models import load_base_model, load_captioner
from entrypoints.settings import Settings
from entrypoints.stores import open_blobs

if TYPE_CHECKING:
    from adapters.diffusion.base.model import BaseModel
    from adapters.diffusion.data_parallel import StartRanks
    from adapters.diffusion.trainer import DiffusionTrainer


def build_trainer(
    settings: Settings,
    base: BaseModel,
    devices: Sequence[str],
    slots: int,
    preview_steps: int | None = None,
) -> DiffusionTrainer:
    """Build the trainer. The base model stays on the first device; each run loads it on the
    others.

    Args:
        preview_steps: denoising steps of a preview; None for the default.
    """
    from adapters.diffusion.data_parallel import start_ranks
    from adapters.diffusion.preview import STEPS
    from adapters.diffusion.trainer import DiffusionTrainer

    device, *others = devices
    return DiffusionTrainer(
        base,
        decode,
        device,
        slots=slots,
        start_ranks=partial(start_ranks, others, partial(_rank_trainer, settings))
        if others
        else None,
        preview_steps=preview_steps or STEPS,
    )


def _rank_trainer(settings: Settings, device: str, start_ranks: StartRanks) -> DiffusionTrainer:
    from adapters.diffusion.trainer import DiffusionTrainer

    base = load_base_model(settings, device)
    return DiffusionTrainer(base, decode, device, start_ranks=start_ranks)


def worker_config(settings: Settings) -> WorkerConfig:
    """The use cases' configuration, from the settings."""
    return WorkerConfig(
        min_images=settings.min_images,
        checkpoint_every=settings.checkpoint_every,
        preview_share=settings.preview_share,
        keep_checkpoints=settings.keep_checkpoints,
        progress_every=settings.progress_every,
        in_flight_seconds=settings.webhook_timeout,
        cancel_poll=settings.cancel_poll,
        max_failures=settings.max_failures,
        fetch_concurrency=settings.fetch_concurrency,
        weights_in_folder=settings.weights_in_folder,
        keep_style_words=settings.keep_style_words,
        lease=LeaseTerms(settings.lease_seconds),
    )


def worker_name(settings: Settings, new_id: Callable[[], str]) -> str:
    """A name that is unique among all starts of all workers, even with one WORKER_NAME."""
    return f"{settings.worker_name or socket.gethostname()}-{os.getpid()}-{new_id()[:8]}"


def open_uploads(slots: int) -> Iterator[Executor]:
    """Threads that upload checkpoints, one per job. Closing the container waits for them."""
    with ThreadPoolExecutor(slots, "checkpoints") as executor:
        yield executor


def build_worker_state(worker: str, clock: SystemClock, stop: StopSignal) -> WorkerState:
    """Build the state that the status page shows."""
    return WorkerState(worker, version(), clock, lambda: stop.reason is not None)


def open_job_log(
    logs: Logging, blobs: BlobStore, keys: StorageKeys, clock: SystemClock, worker: str
) -> Iterator[JobLog]:
    """Collect and store each job's log lines until the container is closed."""
    # A separate store without observers, because the job log is an observer itself.
    store = JobStore(
        blobs=blobs, keys=keys, clock=clock, events=lambda _event: None, worker=worker
    )
    job_log = JobLog(store.put_log, clock, worker)
    logs.also_to(job_log)
    yield job_log
    logging.getLogger().removeHandler(job_log)


def build_worker_pool(loop: WorkerLoop, slots: int) -> WorkerPool:
    """Build one loop per slot. Each loop has its own name, because it has its own leases."""
    if slots == 1:
        return WorkerPool([loop])
    return WorkerPool([_named(loop, f"-slot{slot}") for slot in range(slots)])


def _named(loop: WorkerLoop, suffix: str) -> WorkerLoop:
    run, reject = loop.run, loop.reject
    assert isinstance(run, RunTraining)
    assert isinstance(reject, RejectInvalidTask)
    store = replace(run.store, worker=run.store.worker + suffix)
    return replace(loop, run=replace(run, store=store), reject=replace(reject, store=store))


@contextmanager
def open_container(
    settings: Settings, logs: Logging | None = None, stop: StopSignal | None = None
) -> Iterator[Container]:
    """Build a worker's container, and close its connections at the end.

    Args:
        logs: the logging of this process; by default log lines carry no job id.
        stop: the worker's stop signal, for the status page.
    """
    container = Container(
        settings=settings, logs=logs or silent_logging(), stop=stop or StopSignal()
    )
    try:
        yield container
    finally:
        container.shutdown_resources()


class Container(containers.DeclarativeContainer):
    """The components of a worker. Entry points may override them.

    A provider named ``plain_...`` builds an adapter without its wrapper, which records metrics.
    The provider without the prefix builds the wrapped adapter.
    """

    settings: providers.Dependency[Settings] = providers.Dependency(instance_of=Settings)
    logs: providers.Dependency[Logging] = providers.Dependency(instance_of=Logging)
    stop: providers.Dependency[StopSignal] = providers.Dependency(instance_of=StopSignal)

    console = providers.Singleton(Console)
    clock = providers.Singleton(SystemClock)
    config = providers.Singleton(worker_config, settings)
    worker = providers.Singleton(worker_name, settings, new_id)
    keys = providers.Singleton(StorageKeys, settings.provided.state, settings.provided.models)
    devices = providers.Singleton(choose_devices, settings)
    device = devices.provided[0]
    slots = providers.Singleton(choose_slots, settings, devices.provider)

    # Observers.
    metrics = providers.Singleton(Metrics, worker, providers.Callable(version))
    job_metrics = providers.Singleton(JobMetrics, metrics, clock.provided.monotonic)
    worker_state = providers.Singleton(build_worker_state, worker, clock, stop)
    preview_cache = providers.Singleton(PreviewCache)

    # The ports.
    plain_blobs = providers.Singleton(open_blobs, settings, clock, slots=slots)
    blobs = providers.Singleton(MeteredBlobStore, plain_blobs, metrics, clock)
    plain_queue = providers.Resource(open_queue, settings, clock, worker)
    queue = providers.Singleton(MeteredQueue, plain_queue, metrics)
    dead_letters = queue_depths = plain_queue
    plain_notifier = providers.Resource(open_notifier, settings, console, clock)
    notifier = providers.Singleton(
        MeteredNotifier, plain_notifier, metrics, clock.provided.monotonic
    )
    base_model = providers.Singleton(load_base_model, settings, device)
    trainer = providers.Singleton(build_trainer, settings, base_model, devices, slots)
    captioner = providers.Singleton(load_captioner, settings, device)
    inspector = providers.Singleton(IsolatedInspector)
    reporter = providers.Singleton(HtmlReporter, providers.Object(decode))
    parse_task = providers.Singleton(task_parser, settings)
    load_lora = providers.Singleton(lora_loader, blobs)

    # The store of jobs, and their events.
    job_log = providers.Resource(open_job_log, logs, blobs, keys, clock, worker)
    events = providers.Singleton(
        EventBus,
        logs.provided.context,
        providers.Object(log_event),
        job_metrics,
        worker_state,
        preview_cache,
        job_log,
    )
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
    plan_training = providers.Singleton(
        TrainingPlanner,
        store=store,
        inspector=inspector,
        load_lora=load_lora,
        config=config,
        captioner=captioner,
    )
    admission = providers.Singleton(AdmissionQueue, slots)
    training_loop = providers.Singleton(
        TrainingLoop, store=store, notifier=notifier, config=config, uploads=uploads
    )
    write_report = providers.Singleton(
        ReportWriter,
        store=store,
        reporter=reporter,
        with_previews=providers.Callable(bool, config.provided.preview_share),
    )
    notify_outcome = providers.Singleton(
        OutcomeNotifier, notifier=notifier, clock=clock, random=providers.Object(random.random)
    )
    run_training = providers.Singleton(
        RunTraining,
        store=store,
        plan=plan_training,
        trainer=trainer,
        admission=admission,
        loop=training_loop,
        write_report=write_report,
        notify_outcome=notify_outcome,
        config=config,
    )
    reject_invalid_task = providers.Singleton(
        RejectInvalidTask, store=store, notify_outcome=notify_outcome, config=config
    )
    circuit_breaker = providers.Singleton(CircuitBreaker, clock)
    worker_loop = providers.Singleton(
        WorkerLoop,
        queue=queue,
        parse=parse_task,
        run=run_training,
        reject=reject_invalid_task,
        clock=clock,
        events=events,
        not_ready=providers.Singleton(
            partial, lack_of_space, settings.provided.work_folder, settings.provided.min_disk_gb
        ),
        circuit_breaker=circuit_breaker,
        idle_seconds=settings.provided.idle_seconds,
    )
    worker_pool = providers.Singleton(build_worker_pool, worker_loop, slots)

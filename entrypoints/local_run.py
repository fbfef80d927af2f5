"""Run one task on this machine, from a folder of images to a folder of results.

This module checks only what a user at the terminal can fix; the use case checks the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dependency_injector import providers
from rich.console import Console

from adapters.common.files import why_not_writable
from adapters.common.text import say
from adapters.console.image_notes import generated_captions
from adapters.console.notifier import ConsoleNotifier
from adapters.console.progress import ProgressDisplay
from adapters.console.run_outcome import outcome_values, report_files
from adapters.filesystem import FileBlobStore
from adapters.images.decode import decode
from adapters.images.thumbnail import thumbnail
from adapters.logs.setup import start_logging
from adapters.report.reporter import HtmlReporter
from application.fetch_images import fetch_images
from application.job_store import StorageKeys
from application.lease import LeaseTerms
from application.ports import BlobMissing, BlobStore, ImageInspector
from application.settlement import Ack, DeadLetter, Requeue, RetryLater, Settlement
from application.stop_signal import StopReason, StopSignal
from application.worker_config import WorkerConfig
from domain.captions import caption_suffixes
from domain.errors import UserError
from domain.image import ImageSet
from domain.job import JobState, TrainingJob
from domain.label import InvalidName, Label, file_name_from
from domain.location import Bucket, Location
from domain.parameters import OptimizerName, RequestedParameters, TrainingParameters
from domain.results import Artifact
from domain.task import TrainingTask
from domain.training_plan import InitialLora
from entrypoints.bootstrap import Container
from entrypoints.devices import check_device
from entrypoints.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED
from entrypoints.options import option_of
from entrypoints.settings import Settings, load_settings, log_warnings
from entrypoints.shutdown import signals_handled

if TYPE_CHECKING:
    from adapters.diffusion.base.model import BaseModel

IMAGES, OUT = "images", "out"
"""The buckets that the two folders stand for."""
LEASE = LeaseTerms(seconds=9.0)
"""Short, so that the same command can soon resume the run of a killed process."""
MAX_LOCAL_BYTES = 256 * 1024**2
"""Largest image file: an uncompressed image of 85 megapixels."""
FACTS_RESOLUTION = 512
"""Resolution of the inspection before the base model is loaded; independent of the training's."""
LOCAL_TASKS = uuid.UUID("6f3e0b52-9a0c-4a57-8f0e-1d8a3b5f7c11")
"""Namespace of local task ids: the same run gets the same id, so that it is resumed."""


def check_out(out: Path, images: Path) -> None:
    """Check that ``out`` is writable and is not the images' folder.

    Raises:
        UserError: ``out`` is the images' folder or not writable.
    """
    if out.resolve() == images.resolve():
        raise UserError(
            f"--out {out}: holds the images; give another folder, or a folder inside it"
        )
    check_writable(out)


def check_writable(out: Path) -> None:
    """Check that ``out`` is writable, without leaving files there.

    Raises:
        UserError: ``out`` is not writable.
    """
    if reason := why_not_writable(out):
        raise UserError(f"--out {out}: {reason}; give a folder that you can write")


def check_optimizer(requested: RequestedParameters) -> None:
    """Check that the optimizer's library is installed.

    Raises:
        UserError: the library is missing; the text names the extra to install.
    """
    from adapters.diffusion.optimizer_libraries import missing_extra

    name = OptimizerName(requested.named.get("optimizer", OptimizerName.ADAMW))
    extra = missing_extra(name)
    if extra is not None:
        raise UserError(f"--optimizer {name}: run pip install 'style-trainer[{extra}]'")


def label_of(arguments: argparse.Namespace) -> Label:
    """The name and credits for the style's file.

    Raises:
        UserError: the name is not a valid file name, or the thumbnail cannot be read.
    """
    try:
        return Label(
            name=arguments.name or file_name_from(arguments.out.resolve().name),
            author=arguments.author,
            license=arguments.license,
            thumbnail=arguments.thumbnail and thumbnail(arguments.thumbnail),
        )
    except InvalidName as error:
        raise UserError(f"--name: {error}") from None


def initial_lora(requested: RequestedParameters) -> InitialLora | None:
    """Load the LoRA of ``--network-weights``.

    Raises:
        InvalidLoraFile: the file is not a LoRA that a run can start from.
    """
    given = requested.named.get("network_weights")
    if given is None:
        return None
    from adapters.lora_files.initial_lora import initial_from_path

    return initial_from_path(Path(given))


def build_container(
    arguments: argparse.Namespace, label: Label, initial: InitialLora | None
) -> Container:
    """Build the worker's container with folders as buckets and the terminal as backend."""
    logs = start_logging(level="DEBUG" if arguments.debug else "WARNING", form="text")
    settings = load_settings(options=arguments)
    check_device(arguments.device)
    log_warnings(settings)
    out: Path = arguments.out
    console = Console(stderr=arguments.json)  # with --json, standard output has only the outcome
    container = Container(settings=settings, logs=logs, stop=StopSignal())
    logs.context.worker = container.worker()
    container.override_providers(
        console=console,
        slots=1,
        keys=StorageKeys(Bucket(OUT), report_prefix="", weights_name=label.name),
        config=WorkerConfig(
            min_images=1,
            checkpoint_every=settings.checkpoint_every,
            preview_share=settings.preview_share,
            keep_checkpoints=None,
            max_image_bytes=MAX_LOCAL_BYTES,
            repeats_from_folders=arguments.repeats_from_folders,
            caption_suffixes=caption_suffixes(arguments.caption_extension),
            keep_style_words=settings.keep_style_words,
            lease=LEASE,
        ),
        blobs=FileBlobStore({IMAGES: arguments.images, OUT: out}, read_only=(IMAGES,)),
        load_lora=providers.Object(lambda _: initial),
        reporter=HtmlReporter(decode, companions=True),
        notifier=ConsoleNotifier(console, {OUT: out}),
        events=ProgressDisplay(console, with_previews=settings.preview_share > 0),
    )
    if arguments.preview_steps is not None:
        container.trainer.add_kwargs(preview_steps=arguments.preview_steps)
    return container


def inspect(
    names: Sequence[str], blobs: BlobStore, inspector: ImageInspector, config: WorkerConfig
) -> ImageSet:
    """Inspect the images before anything is written.

    Raises:
        UserError: no image is usable; the text lists each with its reason.
    """
    places = tuple(Location(IMAGES, name) for name in names)
    images = fetch_images(
        places, FACTS_RESOLUTION, blobs, inspector, config, StopSignal(), quiet=True
    )
    if not images.usable:
        reasons = "; ".join(f"{rejected.name}: {rejected.reason}" for rejected in images.rejected)
        raise UserError(f"no usable image, replace these: {reasons}")
    return images


def describe_task(
    arguments: argparse.Namespace,
    requested: RequestedParameters,
    parameters: TrainingParameters,
    names: Sequence[str],
    images: ImageSet,
    base: BaseModel,
    label: Label,
    initial: InitialLora | None,
    settings: Settings,
) -> TrainingTask:
    """Build the task; its id is a hash of everything that determines the weights.

    Args:
        parameters: the requested ones with defaults filled in.
        names: all files, including the rejected ones, whose reasons the report shows.
    """
    identity = {
        "style_id": arguments.style_id,
        "tags": arguments.tags,
        "parameters": asdict(parameters),
        "pictures": [[p.name, p.facts.sha256, p.caption] for p in images.usable],
        "base": base.fingerprint,
    }
    if settings.caption_model and any(image.caption is None for image in images.usable):
        identity["captioner"] = [settings.caption_model, settings.keep_style_words]
    if initial is not None:
        identity["network_weights"] = hashlib.sha256(initial.data).hexdigest()
    return TrainingTask(
        task_id=str(uuid.uuid5(LOCAL_TASKS, json.dumps(identity))),
        style_id=arguments.style_id,
        images=tuple(Location(IMAGES, name) for name in names),
        tags=arguments.tags,
        requested=requested,
        label=label,
    )


def run(
    task: TrainingTask, parameters: TrainingParameters, container: Container, out: Path
) -> tuple[int, dict[str, Any]]:
    """Run the task through the use case; return the exit code, and the outcome as JSON values.

    Args:
        parameters: the task's parameters with defaults filled in.

    Raises:
        UserError: ``out`` holds another run, or another file under the style's name.
    """
    console, store = container.console(), container.store()
    other_runs = [run for run in store.recorded_tasks() if run != task.task_id]
    if other_runs:
        difference = _difference(store.read_job(other_runs[0]), parameters)
        raise UserError(
            f"--out {out}: holds another run {difference}; give another folder, or repeat that "
            "run's command"
        )
    fresh = TrainingJob(task_id=task.task_id, style_id=task.style_id)
    job = store.read_job(task.task_id) or fresh
    if job.state is JobState.FAILED:
        store.delete_record(task.task_id)
    if job.artifact is not None and job.state is JobState.COMPLETED:
        missing = "style"
        if _style_exists(job.artifact, container.blobs(), out):
            if not store.lacks_report(job):
                say(console, f"this run is complete already: {out / job.artifact.location.key}")
                return 0, outcome_values(job, out)
            missing = "report"  # such as after Ctrl-C while it was written
        store.open(job).apply(job.reopen(f"its {missing} is missing"))
        say(console, f"the {missing} of this run is missing in {out}: writing it again", "yellow")

    stop = StopSignal()
    display = container.events()
    assert isinstance(display, ProgressDisplay)  # set by ``build_container``
    with display, _interruptible(stop, display):
        settlement = _settle(task, container, stop)
    job = store.read_job(task.task_id) or fresh
    outcome = outcome_values(job, out)
    match settlement:
        case Ack() if job.state is JobState.COMPLETED:
            generated = list((store.captions(task.task_id) or {}).values())
            if generated:
                say(console, generated_captions(generated))
            for path in report_files(out):
                say(console, f"  {path}")
            return 0, outcome
        case Requeue():
            say(console, f"interrupted; {display.how_to_continue()}")
            return EXIT_INTERRUPTED, outcome
        case RetryLater(elsewhere=True):
            outcome["message"] = (
                f"another run of this command is active in {out}; wait until it ends"
            )
            say(console, outcome["message"], "red")
        case RetryLater(_, reason) | DeadLetter(reason):
            outcome["message"] = reason
            say(console, f"not finished: {reason}", "red")
    return EXIT_FAILED, outcome


def _style_exists(artifact: Artifact, blobs: BlobStore, out: Path) -> bool:
    """Whether the stored style still exists.

    Raises:
        UserError: another file has its name and must not be overwritten.
    """
    try:
        weights = blobs.get(artifact.location).data
    except BlobMissing:
        return False
    if hashlib.sha256(weights).hexdigest() != artifact.sha256:
        raise UserError(
            f"{out / artifact.location.key}: was changed after this run made it; move it away, "
            f"and run the same command to make the style again"
        )
    return True


def _settle(task: TrainingTask, container: Container, stop: StopSignal) -> Settlement:
    """Run the task. If a killed process left its lease, wait once until it expires."""
    use_case = container.run_training()
    settlement: Settlement = use_case(task, stop)
    if isinstance(settlement, RetryLater) and settlement.elsewhere:
        reason = "another run of this command is active here, or was killed"
        say(container.console(), f"waiting {settlement.delay:.0f} s: {reason}")
        time.sleep(settlement.delay)
        settlement = use_case(task, stop)
    return settlement


def _difference(other: TrainingJob | None, parameters: TrainingParameters) -> str:
    """Describe how a run differs from one with these parameters."""
    if other is None or other.parameters is None:
        return "with other images, captions, parameters or base model"
    was, now = asdict(other.parameters), asdict(parameters)
    differing = [
        f"{option_of(name)} {was[name]} (now {now[name]})"
        for name in was
        if was[name] != now[name]
    ]
    if not differing:
        return "with other images, captions or tags, another style id or another base model"
    # Name them: a default may differ because the number of images differs.
    return f"with {', '.join(differing)}"


def _interruptible(stop: StopSignal, display: ProgressDisplay) -> AbstractContextManager[None]:
    """While open, Ctrl-C requests an orderly stop; a second one exits immediately."""

    def request(_number: int, _frame: object) -> None:
        if stop.reason is None:
            stop.request(StopReason.SHUTDOWN)
            display.stopping()
        else:
            raise KeyboardInterrupt(f"exited immediately; {display.how_to_continue()}")

    return signals_handled(request)

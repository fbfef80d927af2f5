"""Check everything that a job needs, for operators of a new pod."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from adapters.common.files import free_space
from adapters.common.text import printable
from application.ports import BlobDenied, BlobUnavailable
from domain.errors import UserError
from domain.location import Bucket

if TYPE_CHECKING:
    from entrypoints.bootstrap import Container
    from entrypoints.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    part: str
    works: bool
    detail: str


def check(container: Container, *, as_json: bool = False) -> int:
    """Run all checks and print each result as it comes; return 0 if all succeed, else 1."""
    results = []
    planned = trials(container)
    width = max(len(part) for part, _ in planned)
    for part, trial in planned:
        results.append(_try(part, trial))
        if not as_json:
            print(_row(results[-1], width))
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    return 0 if all(result.works for result in results) else 1


def trials(container: Container) -> Sequence[tuple[str, Callable[[], str]]]:
    """The name and the check of each component; a check returns a description or raises."""
    settings = container.settings()
    images = [
        ("images", lambda bucket=bucket: _bucket(container, bucket, write=False))
        for bucket in settings.image_buckets
    ]
    stores = [
        (part, lambda bucket=bucket: _bucket(container, bucket, write=True))
        for part, bucket in (("models", settings.models), ("state", settings.state))
        if part == "models" or bucket != settings.models
    ]
    return [
        ("settings", lambda: _settings(settings)),
        ("disk", lambda: _disk(settings)),
        ("queue", lambda: _queue(container)),
        *images,
        *stores,
        ("weights", lambda: _weights_form(settings)),
        ("backend", lambda: _backend(container)),
        ("device", lambda: "; ".join(map(_device, container.devices()))),
        ("base model", lambda: _base_model(container)),
        ("captions", lambda: _captioner(container)),
    ]


def require_fit_store(container: Container) -> None:
    """Check that the store supports conditional writes; an unavailable store passes.

    Raises:
        UserError: the store does not support them, so two workers could train the same job.
    """
    from application.check_bucket import UnfitStore, check_conditions

    try:
        probe = container.store().probe(container.settings().state)
        check_conditions(container.blobs(), probe)
    except UnfitStore as error:
        raise UserError(str(error)) from error
    except (BlobDenied, BlobUnavailable) as error:
        log.warning("the store's conditional writes could not be tested: %s", error)


def _try(part: str, trial: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(part, True, trial())
    except Exception as error:  # show any error in the table, among the other results
        text = " ".join(str(error).split()) or type(error).__name__
        return CheckResult(part, False, text)


def _row(result: CheckResult, width: int) -> str:
    mark = "ok    " if result.works else "FAILED"
    return f"{mark}  {result.part:{width}}  {printable(result.detail)}"


def _settings(settings: Settings) -> str:
    if warnings := settings.warnings():
        raise UserError("; ".join(warnings))
    for name in ("storage_dir", "spool_dir"):
        _require_folder(settings, name)
    return "no setting is misspelt"


def _require_folder(settings: Settings, name: str) -> None:
    folder = getattr(settings, name)
    if name in settings.model_fields_set and folder is not None and not folder.exists():
        raise UserError(f"{name.upper()}={folder}: no such folder; create it, or correct the name")


def _disk(settings: Settings) -> str:
    enough, text = free_space(settings.work_folder, settings.min_disk_gb)
    if not enough:
        raise UserError(f"{text}: free disk space, or lower MIN_DISK_GB, to receive tasks")
    return text


def _queue(container: Container) -> str:
    from adapters.rabbitmq.queue import RabbitQueue
    from entrypoints.connections import queue_place

    queue = container.queue_depths()
    place = queue_place(container.settings())
    if isinstance(queue, RabbitQueue):
        place += f", {queue.check()}"
    counts = ", ".join(f"{name}: {count}" for name, count in queue.depths().items())
    return f"{place}; {counts}"


def _bucket(container: Container, bucket: Bucket, *, write: bool) -> str:
    from application.check_bucket import check_bucket

    settings = container.settings()
    _require_folder(settings, "storage_dir")  # the check would create it
    found = check_bucket(container.blobs(), container.store().probe(bucket), write=write)
    if settings.has_object_store:
        return found
    return f"{found}: the folder {settings.storage_folder / bucket.name}"


def _weights_form(settings: Settings) -> str:
    form = "folder for PEFT" if settings.weights_in_folder else "one file"
    public = settings.state == Bucket(settings.gcs_bucket_name or "-", "gs")
    warning = (
        f"; browsers may be able to read the journals and checkpoints in {settings.state}: "
        "set STATE_BUCKET_NAME"
    )
    return f"{form}, in {settings.models}{warning if public else ''}"


def _backend(container: Container) -> str:
    from adapters.webhook.notifier import WebhookNotifier

    notifier = container.plain_notifier()
    if isinstance(notifier, WebhookNotifier):
        return notifier.check()
    return "not configured: outcomes are printed"


def _device(name: str) -> str:
    import torch

    from adapters.diffusion.execution import compute_on

    device = torch.device(name)
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return f"{device}, {threads} threads, torch {torch.__version__}: for trial runs only"
    properties = torch.cuda.get_device_properties(device)
    memory = properties.total_memory / 1024**3
    number = str(compute_on(device)).removeprefix("torch.")
    return f"{properties.name}, {memory:.0f} GiB, {number}, torch {torch.__version__}"


def _captioner(container: Container) -> str:
    name = container.settings().caption_model
    if container.captioner() is None:
        return "CAPTION_MODEL is not set: no captions are made"
    return f"images without a caption get one from {name}"


def _base_model(container: Container) -> str:
    base = container.base_model()
    return f"{base.name}, {base.native_resolution} px, predicts {base.prediction_type}"

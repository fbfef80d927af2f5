"""Check everything that a job needs, for an operator on a new pod."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from adapters.console import ConsoleNotifier
from application.text import printable
from domain.errors import UserError
from entrypoints.folders import free_space, work_folder
from entrypoints.settings import settings_typos_now

if TYPE_CHECKING:
    from entrypoints.bootstrap import Container
    from entrypoints.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """The result of one check."""

    part: str
    works: bool
    detail: str


def check(container: Container, *, as_json: bool = False) -> int:
    """Print a table of what works; 0 when everything does, else 1."""
    outcomes = [_try(part, trial) for part, trial in trials(container)]
    if as_json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    else:
        print(_table(outcomes))
    return 0 if all(outcome.works for outcome in outcomes) else 1


def trials(container: Container) -> Sequence[tuple[str, Callable[[], str]]]:
    """Every part with its check, which returns a description or raises."""
    settings = container.settings()
    images = [
        ("images", lambda bucket=bucket: _bucket(container, bucket, write=False))
        for bucket in settings.image_buckets
    ]
    return [
        ("settings", lambda: _names(settings)),
        ("disk", lambda: _disk(settings)),
        ("queue", lambda: _counts(container)),
        *images,
        ("models", lambda: _bucket(container, settings.model_bucket_name, write=True)),
        ("backend", lambda: _backend(container)),
        ("device", lambda: "; ".join(map(_device, container.devices()))),
        ("base model", lambda: _base_model(container)),
    ]


def _try(part: str, trial: Callable[[], str]) -> Outcome:
    try:
        return Outcome(part, True, trial())
    except Exception as error:  # whatever it is, the operator wants to see it beside the others
        text = " ".join(str(error).split()) or type(error).__name__
        return Outcome(part, False, text)


def _table(outcomes: Sequence[Outcome]) -> str:
    width = max(len(outcome.part) for outcome in outcomes)
    return "\n".join(
        f"{'ok    ' if outcome.works else 'FAILED'}  {outcome.part:{width}}  "
        f"{printable(outcome.detail)}"
        for outcome in outcomes
    )


def _names(settings: Settings) -> str:
    if typos := settings_typos_now():
        raise UserError(
            "; ".join(
                f"{name} is no setting, did you mean {near}?" for name, near in typos.items()
            )
        )
    for name in ("storage_dir", "spool_dir"):
        folder = getattr(settings, name)
        if name in settings.model_fields_set and folder is not None and not folder.exists():
            raise UserError(
                f"{name.upper()}={folder}: no such folder; create it, or mend the name"
            )
    return "every name that looks like a setting's is one"


def _disk(settings: Settings) -> str:
    enough, found = free_space(work_folder(settings), settings.min_disk_gb)
    if not enough:
        raise UserError(f"{found}: no task would be taken")
    return found


def _counts(container: Container) -> str:
    from entrypoints.connections import queue_place

    depths = container.queue_depths().depths()
    counts = ", ".join(f"{name}: {count}" for name, count in depths.items())
    return f"{queue_place(container.settings())}; {counts}"


def _bucket(container: Container, bucket: str, *, write: bool) -> str:
    from application.check_bucket import check_bucket

    return check_bucket(container.blobs(), container.store().probe(bucket), write=write)


def _backend(container: Container) -> str:
    notifier = container.plain_notifier()
    if isinstance(notifier, ConsoleNotifier):
        return "none: outcomes are printed"
    from adapters.webhook.notifier import WebhookNotifier

    assert isinstance(notifier, WebhookNotifier)  # the container knows these two
    return notifier.check()


def _device(name: str) -> str:
    import torch

    from adapters.diffusion.backend import compute_on

    device = torch.device(name)
    if device.type != "cuda":
        threads = torch.get_num_threads()
        return (
            f"{device}, {threads} threads, torch {torch.__version__}: fit for trying, not for work"
        )
    properties = torch.cuda.get_device_properties(device)
    memory = properties.total_memory / 1024**3
    number = str(compute_on(device)).removeprefix("torch.")
    return f"{properties.name}, {memory:.0f} GiB, {number}, torch {torch.__version__}"


def _base_model(container: Container) -> str:
    base = container.base_model()
    return f"{base.name}, {base.native_resolution} px, predicts {base.prediction_type}"

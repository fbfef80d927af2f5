"""Choose the devices for training, from `DEVICE` or `--device`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from adapters.common.devices import devices_present, gpus_of_torch, max_jobs_for_memory
from domain.errors import UserError

if TYPE_CHECKING:
    from entrypoints.settings import Settings

log = logging.getLogger(__name__)


def choose_devices(settings: Settings) -> tuple[str, ...]:
    """The configured devices; by default a GPU if there is one, else the CPU.

    Raises:
        UserError: a device does not exist.
    """
    return _existing(settings.device, f"DEVICE={settings.device!r}")


def check_device(devices: str | None) -> None:
    """Check that the devices of ``--device`` exist.

    Raises:
        UserError: a device does not exist.
    """
    if devices is not None:
        _existing(devices, f"--device {devices}")


def _existing(devices: str | None, given: str) -> tuple[str, ...]:
    try:
        return devices_present(devices, gpus_of_torch)
    except ValueError as error:
        raise UserError(f"{given}: {error}") from None


def choose_slots(settings: Settings, devices: Callable[[], Sequence[str]]) -> int:
    """Number of jobs that train together: as configured, or as many as fit in GPU memory.

    Args:
        devices: returns the devices; called only if needed, because it is slow.
    """
    if settings.jobs_together != "auto":
        return int(settings.jobs_together)
    import torch

    chosen = torch.device(devices()[0])
    if chosen.type != "cuda":
        return 1
    slots = max_jobs_for_memory(torch.cuda.get_device_properties(chosen).total_memory)
    log.info("up to %d jobs train together on %s", slots, chosen)
    return slots

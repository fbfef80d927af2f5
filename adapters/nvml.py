"""Read NVIDIA GPUs through NVML. A machine without one yields none, without an error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from adapters.common.gpu_reading import GpuReading

log = logging.getLogger(__name__)

T = TypeVar("T")


class GpuReader:
    """Reads the GPUs of this process. May be called from any thread.

    Args:
        visible: the GPUs of CUDA_VISIBLE_DEVICES, by number or by the beginning of the UUID. If it
            is None or names none that the driver lists (such as MIG), every GPU is read.
        nvml: the module ``pynvml`` or a substitute; None to import it.
    """

    def __init__(self, visible: Sequence[str] | None = None, nvml: Any = None) -> None:
        self._visible = tuple(visible or ())
        self._given = nvml
        self._nvml: Any = None
        self._absent = False
        self._lock = threading.Lock()

    def __call__(self) -> list[GpuReading]:
        """Current readings of the GPUs; empty without a GPU or driver."""
        with self._lock:
            nvml = self._started()
            if nvml is None:
                return []
            try:
                every = range(nvml.nvmlDeviceGetCount())
                own = [index for index in every if self._is_visible(nvml, index)]
                return [self._read(nvml, index) for index in own or every]
            except nvml.NVMLError as error:
                log.debug("the GPUs cannot be read: %s", error)
                return []

    def _started(self) -> Any:
        if self._nvml is None and not self._absent:
            try:
                nvml = self._given if self._given is not None else _import_nvml()
                nvml.nvmlInit()
            except Exception as error:
                # No library, no driver, no GPU: permanent, so do not try again.
                log.debug("a GPU cannot be read: %s", error)
                self._absent = True
            else:
                self._nvml = nvml
        return self._nvml

    def _is_visible(self, nvml: Any, index: int) -> bool:
        if not self._visible or str(index) in self._visible:
            return True
        uuid = _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
        return any(uuid.startswith(name) for name in self._visible)

    def _read(self, nvml: Any, index: int) -> GpuReading:
        card = nvml.nvmlDeviceGetHandleByIndex(index)

        def ask(question: Callable[[], T]) -> T | None:
            try:
                return question()
            except nvml.NVMLError:
                return None

        name = ask(lambda: nvml.nvmlDeviceGetName(card)) or f"GPU {index}"
        memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(card))
        rates = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(card))
        milliwatts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(card))
        return GpuReading(
            index=index,
            name=_text(name),
            memory_used=None if memory is None else memory.used,
            memory_total=None if memory is None else memory.total,
            utilization=None if rates is None else rates.gpu / 100,
            temperature=ask(
                lambda: nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
            ),
            power=None if milliwatts is None else milliwatts / 1000,
        )


def _text(value: str | bytes) -> str:
    """Text of NVML; older versions of the library return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _import_nvml() -> Any:
    import pynvml  # type: ignore[import-untyped]  # it comes without types

    return pynvml

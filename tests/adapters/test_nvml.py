"""GPU readings from NVML, which needs a driver; a fake replaces it here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from adapters.common.gpu_reading import GpuReading
from adapters.nvml import GpuReader


class NvmlError(Exception):
    """The error that every NVML call raises."""


class Nvml:
    """A driver with two GPUs, the second of which reports only its name."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0
    nvmlInit = nvmlDeviceGetCount = None  # noqa: N815 - NVML's own names

    def __init__(self, starts: bool = True, falls_off: bool = False) -> None:
        self.starts, self.falls_off, self.begun = starts, falls_off, 0

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            return super().__getattribute__(name)
        return lambda *args: self.call(name, *args)

    def call(self, name: str, *args: Any) -> Any:
        if name == "nvmlInit":
            self.begun += 1
            if not self.starts:
                raise NvmlError("driver not loaded")
            return None
        if self.falls_off:
            raise NvmlError("GPU is lost")
        if name == "nvmlDeviceGetCount":
            return 2
        if name == "nvmlDeviceGetHandleByIndex":
            return args[0]
        if name == "nvmlDeviceGetName":
            return ["NVIDIA H100", b"NVIDIA T4"][args[0]]
        if name == "nvmlDeviceGetUUID":
            return ["GPU-8f1a-4c0e", b"GPU-9b2c-55d1"][args[0]]
        if args[0] == 1:
            raise NvmlError("not supported")
        return {
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 * 2**30, total=80 * 2**30),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=87, memory=40),
            "nvmlDeviceGetPowerUsage": 251_500,
            "nvmlDeviceGetTemperature": 64,
        }[name]


def test_a_gpu_is_read_in_base_units_as_far_as_it_can() -> None:
    assert GpuReader(nvml=Nvml())() == [
        GpuReading(
            index=0,
            name="NVIDIA H100",
            memory_used=3 * 2**30,
            memory_total=80 * 2**30,
            utilization=0.87,
            temperature=64,
            power=251.5,
        ),
        GpuReading(index=1, name="NVIDIA T4"),
    ]


@pytest.mark.parametrize(
    ("visible", "read"),
    [
        (None, [0, 1]),
        (("0",), [0]),
        (("1",), [1]),
        (("1", "0"), [0, 1]),
        (("GPU-8f1a-4c0e",), [0]),
        (("GPU-9b",), [1]),
        (("MIG-4c0e/1/2",), [0, 1]),
        ((), [0, 1]),
    ],
    ids=str,
)
def test_only_the_gpus_of_this_process_are_read_if_it_names_them(
    visible: tuple[str, ...] | None, read: list[int]
) -> None:
    assert [card.index for card in GpuReader(visible, Nvml())()] == read


def test_a_machine_without_a_driver_has_no_gpus_and_is_queried_once() -> None:
    nvml = Nvml(starts=False)
    reader = GpuReader(nvml=nvml)
    assert reader() == [] == reader()
    assert nvml.begun == 1


def test_a_lost_gpu_is_no_error() -> None:
    assert GpuReader(nvml=Nvml(falls_off=True))() == []


def test_the_fake_has_the_names_of_the_library() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in (
        "nvmlInit",
        "nvmlDeviceGetCount",
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetName",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTemperature",
        "NVML_TEMPERATURE_GPU",
        "NVMLError",
    ):
        assert hasattr(pynvml, name), name


def test_this_machine_can_be_read() -> None:
    for gpu in GpuReader()():
        assert gpu.name

"""GPU metrics, read at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.common.gpu_reading import GpuReading
from adapters.metrics.instruments import PREFIX

log = logging.getLogger(__name__)


_FIGURES = (
    ("memory_used", "gpu_memory_used_bytes", "Memory in use by all processes."),
    ("memory_total", "gpu_memory_total_bytes", "Memory of the GPU."),
    ("utilization", "gpu_utilization_ratio", "Share of time with a kernel running, 0 to 1."),
    ("temperature", "gpu_temperature_celsius", "Temperature of the GPU."),
    ("power", "gpu_power_watts", "Power draw of the GPU."),
)


class GpuCollector(Collector):
    """Gauges of the GPUs; none on a machine without GPUs.

    Args:
        read: returns the current readings of the GPUs.
    """

    def __init__(
        self, read: Callable[[], Sequence[GpuReading]], registry: CollectorRegistry
    ) -> None:
        self._read = read
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """The metrics' names, without reading a GPU."""
        return self._families([])

    def collect(self) -> Iterable[Metric]:
        """The gauges that have a value."""
        try:
            readings = self._read()
        except Exception:
            log.exception("the GPUs could not be read")
            readings = []
        return [family for family in self._families(readings) if family.samples]

    def _families(self, readings: Sequence[GpuReading]) -> list[Metric]:
        families: list[Metric] = []
        for attribute, name, text in _FIGURES:
            family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=("gpu", "model"))
            for card in readings:
                value = getattr(card, attribute)
                if value is not None:
                    family.add_metric((str(card.index), card.name), value)
            families.append(family)
        return families

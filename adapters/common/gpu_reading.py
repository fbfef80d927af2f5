"""The state of a GPU, for metrics and the status page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One GPU's state at one moment; None for values that its driver does not report."""

    index: int
    name: str
    memory_used: int | None = None
    """Bytes in use by all processes."""
    memory_total: int | None = None
    """Bytes."""
    utilization: float | None = None
    """Share of the driver's last sampling period in which a kernel ran, 0 to 1."""
    temperature: int | None = None
    """Degrees Celsius."""
    power: float | None = None
    """Watts."""

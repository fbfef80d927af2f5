"""Properties of the GPU that are stored with its measurements."""

from __future__ import annotations

import re
import time
import tomllib
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks import ROOT


def facts(device: torch.device) -> dict[str, Any]:
    """The device, its matrix product speed, and the library versions."""
    import diffusers
    import transformers

    cuda = device.type == "cuda"
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    versions |= {"transformers": transformers.__version__}
    versions |= {"cuda": torch.version.cuda} if cuda else {}
    return {
        "version": _version(),
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "memory_gib": gib(torch.cuda.get_device_properties(device).total_memory) if cuda else 0,
        "versions": versions,
        "matmul_tflops": matmul_limit(device),
    }


def _version() -> str:
    """The version of this checkout, which need not be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["version"])


def matmul_limit(device: torch.device, side: int = 8192, seconds: float = 1.0) -> float:
    """Upper limit of speed: TFLOP/s of large matrix products in the training precision."""
    from adapters.diffusion.execution import choose_execution

    cuda = device.type == "cuda"
    side = side if cuda else 256
    dtype = choose_execution(device).dtype
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    for _ in range(5):
        torch.matmul(left, right, out=out)
    wait_for(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            torch.matmul(left, right, out=out)
        wait_for(device)
        count += 10
    return float(f"{2 * side**3 * count / (time.perf_counter() - started) / 1e12:.4g}")


def slug(device: str) -> str:
    """A device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory to the memory in use now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def gib(count: int) -> float:
    """Convert bytes to GiB."""
    return round(count / 2**30, 2)

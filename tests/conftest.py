"""Environment variables, set before any test file is imported, and the order of the tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

TESTS = Path(__file__).parent
ONE_PROCESS = ("faults/broker/", "faults/", "integration/s3/")
"""Folders whose tests share a server."""
LONGEST_FIRST = (
    "faults/",
    "integration/test_",
    "diffusion/test_several_runs",
    "diffusion/test_text_encoder",
    "contracts/",
    "benchmarks/",
    "integration/",
    "diffusion/",
    "lora_files/",
    "assets/",
    "deploy/",
    "simulation/",
)
"""Tests that take long must not start last, when the other processes have nothing left to do."""

# Models this small are slower with several threads, and if several processes share the
# processor, threads that busy-wait for each other take most of its time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU, Triton's interpreter runs the kernels. Triton reads the variable on import, and
# diffusers imports it; torch could detect a GPU more reliably, but takes seconds to import.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by ``LONGEST_FIRST``."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(TESTS).as_posix()
        found = (n for n, start in enumerate(LONGEST_FIRST) if path.startswith(start))
        return next(found, len(LONGEST_FIRST))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """With ``--dist loadfile``, also run the folders in ``ONE_PROCESS`` in one process each."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder = next((name for name in ONE_PROCESS if f"tests/{name}" in file), None)
            return folder or file

    return ByServer(config, log)

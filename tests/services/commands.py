"""Our commands in their own processes, with the small base on the CPU and no status page."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.services.fork_server import Command, ForkServer

ROOT = Path(__file__).resolve().parents[2]


def environment(**settings: str) -> dict[str, str]:
    """This process's environment, the usual test settings, and the given settings."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "BASE_MODEL": str(ROOT / "assets" / "small_base"),
        "DEVICE": "cpu",
        "STATUS_PORT": "0",
        **settings,
    }


def run(
    name: str,
    *arguments: str,
    cwd: Path,
    timeout: float = 240,
    server: ForkServer | None = None,
    **settings: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m entrypoints.name`` until it ends.

    Args:
        timeout: seconds.
        server: forks the process; by default the shared server.
        settings: environment variables.
    """
    command = (f"entrypoints.{name}", *arguments)
    pipe, env = subprocess.PIPE, environment(**settings)
    with Command(command, cwd=cwd, env=env, stdout=pipe, stderr=pipe, server=server) as process:
        try:
            printed, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)


@contextmanager
def a_worker(
    *arguments: str,
    cwd: Path,
    stderr: int | IO[str] = subprocess.PIPE,
    server: ForkServer | None = None,
    **settings: str,
) -> Iterator[subprocess.Popen[str]]:
    """A running worker, ended on leaving the context."""
    worker = Command(
        ["entrypoints.worker", *arguments],
        cwd=cwd,
        env=environment(**settings),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        server=server,
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()
        if worker.stderr is not None:
            worker.stderr.close()

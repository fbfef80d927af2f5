"""Starts our commands in processes that have already imported torch and other large libraries.

Importing them takes seconds of processor time, which is most of a short command. One server
imports them once and forks for each command. The fork has its own arguments, environment, working
directory and streams, and is a child of the test's process.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from entrypoints.models import import_libraries
from tests.services.child import ROOT

IMPORTED = (
    "adapters.rabbitmq.queue",
    "adapters.s3.store",
    "adapters.webhook.notifier",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "entrypoints.bootstrap",
    "entrypoints.check",
    "entrypoints.settings",
    "google.cloud.storage",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
)
PREVIEW_STEPS = 4
"""Denoising steps of a preview, where the command gives none. Most tests train for less time than
the usual 20 steps take."""
MAX_REQUEST = 128 * 1024
PR_SET_CHILD_SUBREAPER = 36


class ForkServer:
    """The server process. It ends with this one.

    Args:
        preload: a library for LD_PRELOAD, of the server and so of its forks.
    """

    def __init__(self, preload: Path | None = None) -> None:
        self.preload = preload
        self._lock = threading.Lock()
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Libraries read these when they are imported, so a fork's own environment comes too late.
        # Without a network, the hub's client would retry for a long time.
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if preload is not None:
            settings["LD_PRELOAD"] = str(preload)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.services.fork_server"],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdin=theirs.fileno(),
            )

    def fork(
        self, arguments: Sequence[str], cwd: str, env: Mapping[str, str], streams: Sequence[int]
    ) -> int:
        """Run ``python -m`` with these arguments. Returns the id of the process, a child."""
        request = json.dumps([list(arguments), cwd, dict(env)]).encode()
        with self._lock:
            adopt_orphans(True)
            try:
                socket.send_fds(self._connection, [request], list(streams))
                reply = self._connection.recv(64)
            finally:
                adopt_orphans(False)
        if not reply:
            raise RuntimeError(f"the fork server ended, exit code {self._process.wait(10)}")
        return int(reply)


@cache
def shared_server() -> ForkServer:
    """The server for all commands that preload nothing."""
    return ForkServer()


class Command(subprocess.Popen[str]):
    """A running ``python -m`` with these arguments, forked by a server."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: int | IO[Any] | None,
        stderr: int | IO[Any] | None,
        server: ForkServer | None = None,
    ) -> None:
        self._server = server or shared_server()
        null = subprocess.DEVNULL
        super().__init__(
            arguments, cwd=cwd, env=env, stdin=null, stdout=stdout, stderr=stderr, text=True
        )

    def _execute_child(self, *values: Any) -> None:
        """Replaces the standard library's fork and exec. All else of Popen stays as it is."""
        names = inspect.signature(subprocess.Popen._execute_child).parameters  # type: ignore[attr-defined]  # it has no type
        given = dict(zip(names, (self, *values), strict=True))
        streams = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        streams = [n if stream == -1 else stream for n, stream in enumerate(streams)]  # inherited
        self.pid = self._server.fork(given["args"], str(given["cwd"]), given["env"], streams)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[name] for name in pipes))  # type: ignore[attr-defined]  # it has no type


def adopt_orphans(adopt: bool) -> None:
    """Whether descendants of this process become its children when their parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Import, then fork for each request from standard input. Returns in each fork only."""
    import_libraries()
    for name in IMPORTED:
        import_module(name)
    from adapters.diffusion import preview

    preview.STEPS = PREVIEW_STEPS
    assert threading.active_count() == 1, "a fork would not have the other threads"
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as connection:
        while True:
            request, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
            if not request:
                os._exit(0)
            if forked(connection):
                break
            for stream in streams:
                os.close(stream)
    arguments, cwd, env = json.loads(request)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # New objects: the former ones may be able to seek, and these may not.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open
    sys.stdout, sys.stderr = (
        open(number, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open
        for number in (1, 2)
    )
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]  # as in a new process
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def forked(connection: socket.socket) -> bool:
    """Fork and reply with the id; True in the fork. A process between ends first, so that the
    test's process adopts the fork."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid == 0:
            return True
        os.write(writing, str(pid).encode())
        os._exit(0)
    os.waitpid(between, 0)
    connection.send(os.read(reading, 64))
    os.close(reading)
    os.close(writing)
    return False


if __name__ == "__main__":
    main()

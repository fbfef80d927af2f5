"""A RabbitMQ node of the test's own, which it can stop, start and kill."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import pika
from pika.exceptions import AMQPError

from tests.services.missing import skip_or_fail
from tests.services.ports import free_ports

SCRIPTS = Path("/usr/lib/rabbitmq/bin")
ROOT = os.environ.get("TEST_RABBITMQ_ROOT")
"""Root folder of another Debian whose RabbitMQ is used (tests/brokers); unset: this machine's."""
ENTER_ROOT = """
    mkdir -p "$0$TMPDIR" && mount --bind "$TMPDIR" "$0$TMPDIR" && mount -t proc proc "$0/proc"
    exec chroot "$0" "$@"
"""
START_SECONDS = 120.0
LOOPBACK = "{127,0,0,1}"


class Broker:
    """A node with its data in ``folder``, which survives stops and kills.

    User and password are guest. Port mapper, cookie, configuration and data are its own, so it
    shares nothing with the machine's other nodes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        configuration: str = "",
        plugins: tuple[str, ...] = (),
        flags: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, distribution, mapper = free_ports(3)
        self.log = folder / "node.log"
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n{configuration}\n"
        )
        (folder / "env.conf").touch()
        (folder / "plugins").write_text(f"[{','.join(plugins)}].")
        kept = ("PATH", "LANG", "LC_ALL")
        self._environment = {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "TMPDIR": tempfile.gettempdir(),
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "ERL_EPMD_PORT": str(mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_FLAGS": f"-kernel inet_dist_use_interface {LOOPBACK} +S 1:1 {flags}",
            # The script is then replaced by the node, so its process id is the node's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        self._node: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        assert self._node is None
        with self.log.open("ab") as log:
            self._node = subprocess.Popen(
                _command(SCRIPTS / "rabbitmq-server"),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # Kills the node when this process dies for any reason, as its standard input closes then.
        self._watcher = subprocess.Popen(
            ["sh", "-c", f"cat; kill -9 {self._node.pid}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_responding():
            if self._node.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the broker did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._node is not None

    def stop(self) -> None:
        """Stop gracefully: connections are closed, everything is written to disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop immediately, as kill -9 does."""
        self._end(signal.SIGKILL)

    def control(self, *arguments: str) -> str:
        """Output of ``rabbitmqctl``."""
        done = subprocess.run(
            _command(SCRIPTS / "rabbitmqctl", "--quiet", *arguments),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {arguments}: {done.stdout}{done.stderr}")
        return done.stdout

    @cached_property
    def version(self) -> tuple[int, ...]:
        """RabbitMQ's version."""
        return tuple(map(int, self.control("version").strip().split(".")))

    def evaluate(self, expression: str) -> str:
        """Evaluate an Erlang expression in the node."""
        return self.control("eval", f"{expression}.").strip()

    def close_connections(self) -> None:
        """Close every client's connection, as an operator does."""
        self.control("close_all_connections", "closed by a test")

    def depths(self) -> dict[str, int]:
        """Messages by queue, including unacknowledged ones.

        The listing updates a quorum queue's count only every five seconds; the queue itself
        reports its ready messages immediately.
        """
        lines = self.control("list_queues", "name", "messages", "--no-table-headers")
        listed = {name: int(count) for name, count in map(str.split, lines.splitlines())}
        with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.port)) as broker:
            channel = broker.channel()
            waiting = {
                name: channel.queue_declare(name, passive=True).method.message_count
                for name in listed
            }
        return {name: max(count, waiting[name]) for name, count in listed.items()}

    def delete_queues(self) -> None:
        """Delete every queue with its messages."""
        with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.port)) as broker:
            channel = broker.channel()
            for name in self.control("list_queues", "name", "--no-table-headers").split():
                channel.queue_delete(name)

    def end(self) -> None:
        """Stop everything; only the folder remains."""
        self.kill()
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                _command("epmd", "-kill"), env=self._environment, capture_output=True, timeout=10
            )

    def _is_responding(self) -> bool:
        parameters = pika.ConnectionParameters(
            "127.0.0.1", self.port, connection_attempts=1, socket_timeout=5, stack_timeout=5
        )
        with (
            contextlib.suppress(AMQPError, OSError),
            socket.create_connection(("127.0.0.1", self.port), 1),
        ):
            pika.BlockingConnection(parameters).close()
            return True
        return False

    def _end(self, by: signal.Signals) -> None:
        for process in (self._watcher, self._node):
            if process is None:
                continue
            # Stop the watcher first, because the node's process id may be reused.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL if process is self._watcher else by)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
        self._node = self._watcher = None


def _command(program: str | Path, *arguments: str) -> list[str]:
    """Command that runs ``program`` of ``ROOT`` in temporary mounts; needs root for them."""
    command = [str(program), *arguments]
    return command if ROOT is None else ["unshare", "-m", "sh", "-ec", ENTER_ROOT, ROOT, *command]


@contextmanager
def own_broker(
    *, configuration: str = "", plugins: tuple[str, ...] = (), flags: str = ""
) -> Iterator[Broker]:
    """A running node, removed afterwards.

    Args:
        configuration: lines of ``rabbitmq.conf``.
        plugins: names of the enabled plugins.
        flags: options of Erlang, for settings that ``rabbitmq.conf`` does not have.
    """
    require_rabbitmq()
    with tempfile.TemporaryDirectory(prefix="broker-") as folder:
        broker = Broker(Path(folder), configuration=configuration, plugins=plugins, flags=flags)
        try:
            broker.start()
            yield broker
        finally:
            broker.end()


def require_rabbitmq() -> None:
    """Skip the test if RabbitMQ is not installed; fail it in CI, where it must be."""
    if not (SCRIPTS / "rabbitmq-server").exists():
        skip_or_fail(f"waits for RabbitMQ to be installed, with its scripts in {SCRIPTS}")

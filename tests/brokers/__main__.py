"""The RabbitMQ tests on other versions than this machine's: `make test-brokers`.

Fetches newer Debians with RabbitMQ into a folder (needs root and debootstrap, 400 MB each), starts
a node of each on free ports with a port mapper of its own, and runs there the tests that meet
RabbitMQ: integration, contract, broker faults, and a job whose broker is killed while it trains.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SUITES = {
    "integration and contract": (
        "tests/integration/rabbitmq",
        "tests/contracts/test_queue.py",
    ),
    "faults": (
        "tests/faults/test_broker.py",
        "tests/faults/broker/test_ack_timeout.py",
        "tests/faults/broker/test_permissions.py",
        "tests/faults/broker/test_quorum_queue.py",
        "tests/faults/broker/test_tls.py",
        "tests/faults/test_job_and_broker.py",
    ),
}


@dataclass(frozen=True)
class Version:
    """An available RabbitMQ version."""

    name: str
    suite: str | None
    """The Debian release that has it; None: the one of this machine."""


VERSIONS = (
    Version("3.10", None),  # Debian 12
    Version("4.0", "trixie"),
    Version("4.3", "sid"),
)


def main() -> int:
    """Test the given versions. Returns 0 if all tests pass."""
    parser = argparse.ArgumentParser(prog="python -m tests.brokers", description=__doc__)
    parser.add_argument("versions", nargs="*", help="default: 3.10 4.0 4.3")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/brokers"), help="where the Debians are kept"
    )
    arguments = parser.parse_args()
    wanted = arguments.versions or [version.name for version in VERSIONS]
    unknown = set(wanted) - {version.name for version in VERSIONS}
    if unknown:
        parser.error(f"unknown versions: {', '.join(sorted(unknown))}")
    results: dict[str, str] = {}
    for version in VERSIONS:
        if version.name in wanted:
            root = None
            if version.suite is not None:
                root = fetch(version.suite, arguments.folder.resolve() / version.name)
            results |= run(version.name, root)
    print()
    for title, closing_line in results.items():
        print(f"RabbitMQ {title}: {closing_line}")
    return 0 if all("passed" in line and "failed" not in line for line in results.values()) else 1


def fetch(suite: str, root: Path) -> Path:
    """Install a Debian with RabbitMQ in ``root``, unless it is there already."""
    done = root / "fetched"
    if done.exists():
        return root
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise SystemExit(
            "error: debootstrap fetches newer RabbitMQ, as root: "
            "apt-get install debootstrap, and run this as root"
        )
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    options = ["--variant=minbase", "--include=rabbitmq-server"]
    subprocess.run(["debootstrap", *options, suite, root], check=True, stdout=subprocess.DEVNULL)
    # The node's name is at localhost.
    shutil.copy("/etc/hosts", root / "etc" / "hosts")
    done.touch()
    return root


def run(name: str, root: Path | None) -> dict[str, str]:
    """Run the suites on a node of this version. Returns the last output line of each suite."""
    environment = {**os.environ, "CI": "true"}
    if root is not None:
        environment["TEST_RABBITMQ_ROOT"] = str(root)
    node = subprocess.Popen(
        [sys.executable, "-m", "tests.brokers.node"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdin is not None
    assert node.stdout is not None
    try:
        version, port = node.stdout.readline().split()
        environment["TEST_RABBITMQ_PORT"] = port
        return {
            f"{version}, {suite}": pytest(paths, environment) for suite, paths in SUITES.items()
        }
    finally:
        node.stdin.close()
        node.wait(60)


def pytest(paths: tuple[str, ...], environment: dict[str, str]) -> str:
    """Run tests and print their output. Returns its last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    started = time.monotonic()
    last = ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return last or f"ended with {tests.returncode} after {time.monotonic() - started:.0f} s"


if __name__ == "__main__":
    sys.exit(main())

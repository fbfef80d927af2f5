"""Starts and stops the stand-in backend, on a free loopback port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from tests.services.backend import FINAL, Call
from tests.services.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-more-than-32-characters-0123456789"


class BackendProcess:
    """A backend of our own, as a context manager.

    Args:
        styles: the styles that it knows. None: all.
        certificate: PEM files of a certificate and its key; with them it serves HTTPS.
        port: 0 takes a free one.
        log: where it writes a line for each request. None: nowhere.
    """

    def __init__(
        self,
        *,
        token: str = TOKEN,
        styles: Iterable[int] | None = None,
        certificate: tuple[Path, Path] | None = None,
        port: int = 0,
        log: Path | None = None,
    ) -> None:
        self.token = token
        self._arguments = ["--token", token, "--port", str(port)]
        if styles is not None:
            self._arguments += ["--styles", ",".join(map(str, styles))]
        if certificate is not None:
            self._arguments += ["--certificate", *map(str, certificate[:1])]
            self._arguments += ["--key", str(certificate[1])]
        self._scheme = "http" if certificate is None else "https"
        self._authority = True if certificate is None else str(certificate[0])
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._control = requests.Session()
        self._control.trust_env = False
        self.port = port

    @property
    def url(self) -> str:
        """What BACKEND_API_URL is."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Call]:
        """Every request to a webhook so far, oldest first."""
        return [Call(**call) for call in self._ask("GET", "/_calls")["calls"]]

    @property
    def final(self) -> list[Call]:
        """The final calls that were taken: what artists have seen."""
        return [call for call in self.calls if call.taken and call.kind in FINAL]

    @property
    def repeats(self) -> dict[str, int]:
        """By idempotency key, how often a final call was taken beyond the first time."""
        return self._ask("GET", "/_calls")["repeats"]

    def misbehave(
        self,
        *schedule: Fault | None,
        probability: float = 0.0,
        among: Iterable[Fault] = (),
        seed: int = 0,
        kinds: Iterable[str] | None = None,
    ) -> None:
        """Replace what is left of earlier faults; the arguments are those of ``FaultPlan``."""
        plan = {
            "schedule": [fault and asdict(fault) for fault in schedule],
            "probability": probability,
            "among": [asdict(fault) for fault in among],
            "seed": seed,
            "kinds": None if kinds is None else list(kinds),
        }
        self._ask("POST", "/_faults", plan)

    def forget(self) -> None:
        """Forget the calls so far."""
        self._ask("DELETE", "/_calls")

    def start(self) -> None:
        """Start, and wait until it listens. The port stays the same when it is started again."""
        output = subprocess.DEVNULL if self._log is None else self._log.open("a")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.services.backend", *self._arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        finally:
            if not isinstance(output, int):
                output.close()
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said.startswith("listening on port "):
            self.stop()
            raise RuntimeError("the backend did not start")
        self.port = int(said.rsplit(" ", 1)[1])
        self._arguments[self._arguments.index("--port") + 1] = str(self.port)

    def stop(self) -> None:
        """End the process; what it knew is gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        self._control.close()

    def __enter__(self) -> BackendProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        url = self.url + path
        answer = self._control.request(
            method, url, json=body, timeout=10, verify=self._authority, allow_redirects=False
        )
        if answer.status_code != 200:
            raise ValueError(answer.text)
        return answer.json()

"""Starts and stops the stand-in backend, on a free loopback port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import requests

from tests.services.backend import FINAL, Call
from tests.services.backend_faults import Fault
from tests.services.certificates import Authority
from tests.services.commands import ROOT

TOKEN = "a-token-of-more-than-32-characters-0123456789"


class BackendProcess:
    """A backend process of the test's own, as a context manager.

    Args:
        styles: the known styles. None: all.
        authority: signs its certificate, and makes it serve HTTPS.
    """

    token = TOKEN

    def __init__(
        self, *, styles: Iterable[int] | None = None, authority: Authority | None = None
    ) -> None:
        self.port = 0
        self._arguments = ["--token", TOKEN]
        self._scheme = "http"
        self._trusted: bool | str = True
        if styles is not None:
            self._arguments += ["--styles", ",".join(map(str, styles))]
        if authority is not None:
            pair = authority.issue("backend.test")
            self._arguments += ["--certificate", str(pair.certificate), "--key", str(pair.key)]
            self._scheme = "https"
            self._trusted = str(authority.certificate)
        self._process: subprocess.Popen[str] | None = None
        self._control = requests.Session()
        self._control.trust_env = False

    @property
    def url(self) -> str:
        """The value for BACKEND_API_URL."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Call]:
        """Every request to a webhook so far, oldest first."""
        return [Call(**call) for call in self._ask("GET", "/_calls")["calls"]]

    @property
    def final(self) -> list[Call]:
        """The `complete` and `failed` calls that it accepted: what artists see."""
        return [call for call in self.calls if call.accepted and call.kind in FINAL]

    @property
    def repeats(self) -> dict[str, int]:
        """By idempotency key, how often a `complete` or `failed` call was accepted again."""
        repeats: dict[str, int] = self._ask("GET", "/_calls")["repeats"]
        return repeats

    def misbehave(
        self,
        *schedule: Fault | None,
        probability: float = 0.0,
        among: Iterable[Fault] = (),
        seed: int = 0,
        kinds: Iterable[str] | None = None,
    ) -> None:
        """Replace the remaining faults; the arguments are those of ``FaultPlan``."""
        plan = {
            "schedule": [fault and asdict(fault) for fault in schedule],
            "probability": probability,
            "among": [asdict(fault) for fault in among],
            "seed": seed,
            "kinds": None if kinds is None else list(kinds),
        }
        self._ask("POST", "/_faults", plan)

    def forget(self) -> None:
        """Clear the recorded calls."""
        self._ask("DELETE", "/_calls")

    def start(self) -> None:
        """Start, and wait until it listens. A restart keeps the port."""
        server = [sys.executable, "-m", "tests.services.backend"]
        self._process = subprocess.Popen(
            [*server, *self._arguments, "--port", str(self.port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        first_line = self._process.stdout.readline()
        if not first_line.startswith("listening on port "):
            self.stop()
            raise RuntimeError("the backend did not start")
        self.port = int(first_line.rsplit(" ", 1)[1])

    def stop(self) -> None:
        """End the process and lose its state."""
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

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        url = self.url + path
        response = self._control.request(
            method, url, json=body, timeout=10, verify=self._trusted, allow_redirects=False
        )
        if response.status_code != 200:
            raise ValueError(response.text)
        return response.json()

"""A stand-in for the platform's backend: a process that responds as the contract says.

    python -m tests.services.backend --port 8000 --token ...

Like the real one it is not idempotent: the artist sees a call twice if it is accepted twice.
Like the platform of December 2025 it serves a completed style publicly at
``GET /api/styles/<id>/``, and 404 for a style that is in training or has failed. All calls are
recorded: read them at ``GET /_calls``. ``POST /_faults`` injects faults.
"""

from __future__ import annotations

import argparse
import hmac
import json
import re
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.services.backend_faults import Fault, FaultPlan

ROUTES = {
    ("PATCH", "/api/webhooks/training/progress"): "progress",
    ("POST", "/api/webhooks/training/complete"): "complete",
    ("POST", "/api/webhooks/training/failed"): "failed",
}
FINAL = ("complete", "failed")
STYLE = re.compile(r"/api/styles/(\d+)/")
LOCATIONS = ("s3://", "gs://")
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Call:
    """One request to a webhook, accepted or not."""

    kind: str
    style_id: int | None
    body: Any
    idempotency_key: str | None
    at: float
    """Seconds since 1970."""
    headers: dict[str, str]
    """Names in lower case, without the token."""
    peer: str
    """Client address and port: the same for calls over one connection."""
    accepted: bool
    """Whether the backend performed the call: notified the artist, stored the progress."""
    response: int | str
    """The status sent, or the fault injected instead."""


@dataclass
class Backend:
    """The backend's state. Every method may be called from any thread."""

    token: str
    styles: set[int] | None = None
    """None: all styles are known."""
    calls: list[Call] = field(default_factory=list)
    plan: FaultPlan = field(default_factory=FaultPlan)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rejection(self, headers: Message, kind: str, body: Any) -> tuple[int, str] | None:
        """Status and reason if the call must be rejected."""
        bearer: str = headers.get("Authorization", "")
        if not hmac.compare_digest(bearer.encode(), f"Bearer {self.token}".encode()):
            return 401, "Invalid or missing token"
        if headers.get("X-Request-Source") != "training-server":
            return 403, "Invalid request source"
        if headers.get_content_type() != "application/json":
            return 400, "Content-Type must be application/json"
        if (problem := invalid(kind, body)) is not None:
            return 400, problem
        if self.styles is not None and body["style_id"] not in self.styles:
            return 404, f"Style {body['style_id']} not found"
        return None

    def style(self, style_id: int) -> dict[str, Any] | None:
        """The public representation of a style; None if it is not completed."""
        with self.lock:
            accepted = [c for c in self.calls if c.accepted and c.style_id == style_id]
        final = [call for call in accepted if call.kind in FINAL]
        if not final or final[-1].kind != "complete":
            return None
        body = final[-1].body
        return {
            "id": style_id,
            "training_status": "completed",
            "model_path": body["model_path"],
            "training_metric": body["training_metric"],
            "training_progress": None,
        }

    def summary(self) -> dict[str, Any]:
        """All calls, oldest first, and how often each key was accepted more than once."""
        with self.lock:
            calls = list(self.calls)
        accepted = Counter(
            call.idempotency_key
            for call in calls
            if call.accepted and call.kind in FINAL and call.idempotency_key
        )
        return {
            "calls": [asdict(call) for call in calls],
            "repeats": {key: count - 1 for key, count in accepted.items() if count > 1},
        }


def invalid(kind: str, body: Any) -> str | None:
    """The first field that is missing or wrong."""
    if not isinstance(body, dict):
        return "The body must be a JSON object"
    if not _is_integer(body.get("style_id")):
        return "style_id: an integer is required"
    match kind:
        case "progress":
            names = ("current_epoch", "total_epochs", "progress_percent", "estimated_seconds")
            return _figures(body, "progress", integers=names)
        case "complete":
            path = body.get("model_path")
            if not isinstance(path, str) or not path.startswith(LOCATIONS):
                return f"model_path: one of {', '.join(LOCATIONS)} is required"
            return _figures(body, "training_metric", integers=("epochs",), numbers=("loss",))
    message = body.get("error_message")
    if not isinstance(message, str) or not message.strip() or "\0" in message:
        return "error_message: a text is required"
    if not isinstance(body.get("error_code", ""), str):
        return "error_code: a text is required"
    return None


def _figures(
    body: Mapping[str, Any], name: str, *, integers: tuple[str, ...], numbers: tuple[str, ...] = ()
) -> str | None:
    figures = body.get(name)
    if not isinstance(figures, dict):
        return f"{name}: an object is required"
    for key in integers:
        if not _is_integer(figures.get(key)) or figures[key] < 0:
            return f"{name}.{key}: an integer is required"
    for key in numbers:
        value = figures.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return f"{name}.{key}: a number is required"
    return None


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Handler(BaseHTTPRequestHandler):
    """Reads requests, injects faults, and responds."""

    protocol_version = "HTTP/1.1"
    server: BackendServer

    def setup(self) -> None:
        """Disable Nagle's algorithm: it would delay the body after the headers."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        """Serve the record, the health check and styles."""
        if self.path == "/_calls":
            self._respond(200, self.server.backend.summary())
        elif self.path == "/_ready":
            self._respond(200, {"success": True})
        elif (named := STYLE.fullmatch(self.path)) is not None:
            self._style(int(named[1]))
        else:
            self._respond(404, {"success": False, "error": "Not found"})

    def _style(self, style_id: int) -> None:
        backend = self.server.backend
        with backend.lock:
            fault = backend.plan.next("style")
        if fault is not None:
            self._misbehave(fault)
        elif "Authorization" in self.headers:
            self._respond(401, {"detail": "Invalid token."})  # the worker's token is not a user's
        elif (style := backend.style(style_id)) is None:
            self._respond(404, {"detail": "Not found."})
        else:
            self._respond(200, style)

    def do_DELETE(self) -> None:
        """Clear the recorded calls."""
        with self.server.backend.lock:
            self.server.backend.calls.clear()
        self._respond(200, {"success": True})

    def do_PATCH(self) -> None:
        """Handle a progress call."""
        self._webhook()

    def do_POST(self) -> None:
        """Handle a `complete` or `failed` call, or set new faults."""
        if self.path == "/_faults":
            try:
                self.server.backend.plan = FaultPlan.from_json(self._body())
            except (ValueError, TypeError) as error:
                self._respond(400, {"success": False, "error": str(error)})
            else:
                self._respond(200, {"success": True})
            return
        self._webhook()

    def _webhook(self) -> None:
        backend = self.server.backend
        body = self._body()
        kind = ROUTES.get((self.command, self.path))
        if kind is None:
            known = any(path == self.path for _, path in ROUTES)
            reason = "Method not allowed" if known else "Not found"
            self._respond(405 if known else 404, {"success": False, "error": reason})
            return
        with backend.lock:
            fault = backend.plan.next(kind)
        if fault is not None and fault.do == "slow":
            self.server.closing.wait(fault.seconds)
            fault = None
        if fault is not None and not fault.accepted:
            self._record(kind, body, accepted=False, response=fault.status or fault.do)
            self._misbehave(fault)
            return
        rejection = backend.rejection(self.headers, kind, body)
        if rejection is not None:
            self._record(kind, body, accepted=False, response=rejection[0])
            self._respond(rejection[0], {"success": False, "error": rejection[1]})
            return
        self._record(kind, body, accepted=True, response=fault.do if fault else 200)
        if fault is not None:
            self._misbehave(fault)
        else:
            self._respond(200, {"success": True})

    def _misbehave(self, fault: Fault) -> None:
        self.close_connection = True
        match fault.do:
            case "response":
                self._respond(fault.status, fault.body, fault.headers)
            case "hang" | "hang_after":
                self.server.closing.wait(fault.seconds)
            case "reset_before" | "reset_after":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
            case "cut":
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"succ')
            case "slow_status":
                self.wfile.write(b"HTTP/1.1 ")
                self._send_slowly(fault.seconds)
            case "slow_headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                self._send_slowly(fault.seconds)
            case "slow_body":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                self._send_slowly(fault.seconds)

    def _send_slowly(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.server.closing.wait(0.05):
            try:
                self.wfile.write(b" ")
            except OSError:
                return

    def _record(self, kind: str, body: Any, *, accepted: bool, response: int | str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        headers.pop("authorization", None)
        style_id = body.get("style_id") if isinstance(body, dict) else None
        call = Call(
            kind=kind,
            style_id=style_id if _is_integer(style_id) else None,
            body=body,
            idempotency_key=headers.get("idempotency-key"),
            at=time.time(),
            headers=headers,
            peer="{}:{}".format(*self.client_address[:2]),
            accepted=accepted,
            response=response,
        )
        with self.server.backend.lock:
            self.server.backend.calls.append(call)

    def _body(self) -> Any:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BYTES:
            self.close_connection = True
            return None
        try:
            return json.loads(self.rfile.read(length))
        except ValueError:
            return None

    def _respond(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


class BackendServer(ThreadingHTTPServer):
    """Serves one backend, with a thread per connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], backend: Backend, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(address, Handler)
        self.backend = backend
        self.closing = threading.Event()
        self._tls = tls

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the TLS handshake on the connection's own thread: a slow one blocks no other."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        with self._tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Stand-in for the platform's backend.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--token", required=True, help="the worker's INTERNAL_API_TOKEN")
    parser.add_argument("--styles", help="ids with commas; others get 404. Unset: all are known")
    parser.add_argument("--certificate", help="PEM file; with it, serves HTTPS")
    parser.add_argument("--key", help="PEM file of the certificate's key")
    options = parser.parse_args()
    styles = {int(part) for part in options.styles.split(",")} if options.styles else None
    tls = None
    if options.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.certificate, options.key)
    server = BackendServer((options.host, options.port), Backend(options.token, styles), tls)

    def stop(number: int, frame: object) -> None:
        server.closing.set()
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sys.stdout.write(f"listening on port {server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""An HTTP proxy that injects faults, which can be changed while it runs.

It runs in its own process between a client and a server. Rules define which requests get which
fault. Set the rules, and read what happened, at ``/_faults`` on the same port.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.services.child import end_with_parent, serving
from tests.services.http_faults import Plan, Rule, Seen

CONTROL = "/_faults"
CHUNK = 64 * 1024


@dataclass(frozen=True)
class FaultyProxy:
    """A running proxy."""

    url: str

    def rules(self, *rules: Rule, seed: int = 0) -> None:
        """Replace all rules, and clear the record of requests."""
        plan = {"rules": [asdict(rule) for rule in rules], "seed": seed}
        requests.post(self.url + CONTROL, json=plan, timeout=30).raise_for_status()

    def clear(self) -> None:
        """Pass everything on unchanged."""
        self.rules()

    def seen(self) -> list[Seen]:
        """Every request answered, dropped or left hanging since the rules were set."""
        response = requests.get(self.url + CONTROL, timeout=30)
        response.raise_for_status()
        return [Seen(**one) for one in response.json()]


@contextmanager
def running_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy for the server at ``upstream``, on a free port."""
    with serving("tests.services.http_proxy", upstream) as url:
        yield FaultyProxy(url)


@dataclass(frozen=True)
class Response:
    """The response to send to the client."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ProxyServer

    def handle_one_request(self) -> None:
        """Read a request with any method and serve it."""
        try:
            self.raw_requestline = self.rfile.readline(CHUNK)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if self.path == CONTROL:
                self._control(body)
            else:
                self._pass_on(body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def _control(self, body: bytes) -> None:
        if self.command == "GET":
            response = json.dumps([asdict(seen) for seen in self.server.plan.seen()]).encode()
        else:
            plan = json.loads(body)
            self.server.follow(Plan([Rule(**rule) for rule in plan["rules"]], plan["seed"]))
            response = b""
        for _ in self._send(Response(200, [("Content-Type", "application/json")], response)):
            pass

    def _pass_on(self, body: bytes) -> None:
        plan = self.server.plan
        rule = plan.choose(self.command, self.path, self.headers.get("Authorization", ""))
        fault = None if rule is None else rule.fault
        if rule is not None and rule.fault == "hang":
            plan.note(Seen(self.command, self.path, self._heads(), fault, None, 0))
            plan.over.wait(rule.seconds)
            self.close_connection = True
            return
        response: Response | None = None
        sent = 0
        try:
            response = self._response_for(rule, body)
            if response is not None:
                allowed = len(response.body) // 2 if fault == "cut" else len(response.body)
                for count in self._send(response, allowed):
                    sent = count
            if response is None or fault == "cut":
                self.close_connection = True
        finally:
            status = None if response is None else response.status
            plan.note(Seen(self.command, self.path, self._heads(), fault, status, sent))

    def _response_for(self, rule: Rule | None, body: bytes) -> Response | None:
        """The response to send, or None to reset the connection."""
        if rule is not None and rule.fault == "response":
            return Response(rule.status, list(rule.headers.items()), rule.body.encode())
        if rule is not None and rule.fault == "reset_before":
            self._reset()
            return None
        response = self.server.fetch(self.command, self.path, self._heads(), body)
        if rule is not None and rule.fault == "reset_after":
            self._reset()
            return None
        if rule is not None and rule.fault == "corrupt" and response.body:
            damaged = bytearray(response.body)
            damaged[len(damaged) // 2] ^= 0x20
            return Response(response.status, response.headers, bytes(damaged))
        return response

    def _send(self, response: Response, allowed: int | None = None) -> Iterator[int]:
        """Send the head and the body, or its first bytes; count the bytes."""
        self.send_response_only(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        if self.command != "HEAD" and response.status not in {204, 304}:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = response.body[:allowed]
        for start in range(0, len(body), CHUNK):
            piece = body[start : start + CHUNK]
            self.wfile.write(piece)
            yield start + len(piece)

    def _heads(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class ProxyServer(ThreadingHTTPServer):
    """Passes requests on to one server."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan = Plan()
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._names = (upstream, f"http://127.0.0.1:{self.server_port}")

    def follow(self, plan: Plan) -> None:
        """Replace the plan."""
        self.plan.over.set()
        self.plan = plan

    def fetch(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        """The server's response."""
        connection = http.client.HTTPConnection(*self._upstream, timeout=120)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name not in {"connection", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            dropped = {"connection", "keep-alive", "transfer-encoding"}
            if method != "HEAD":
                dropped.add("content-length")
            # Without this, an upload's own URL would bypass the proxy.
            kept = [
                (name, value.replace(*self._names))
                for name, value in response.getheaders()
                if name.lower() not in dropped
            ]
            return Response(response.status, kept, response.read())
        finally:
            connection.close()

    def shutdown_request(self, request: Any) -> None:
        """Close without sending FIN, which would precede a reset."""
        self.close_request(request)


def main() -> None:
    """Serve on a free port, print the URL, end with the parent."""
    parser = argparse.ArgumentParser()
    parser.add_argument("upstream")
    server = ProxyServer(parser.parse_args().upstream)
    end_with_parent()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 - for the parent
    server.serve_forever()


if __name__ == "__main__":
    main()

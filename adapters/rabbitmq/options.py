"""Address of the broker, names of the queues, and timeouts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """TLS certificates of the broker and of the worker."""

    ca_file: Path | None = None
    """CA certificates to trust, PEM. None: the system's."""
    certificate: Path | None = None
    """Client certificate, PEM, where the broker requires one."""
    key: Path | None = None
    """The client certificate's private key, PEM, without a passphrase."""

    def __post_init__(self) -> None:
        if self.key is not None and self.certificate is None:
            raise ValueError(f"key={str(self.key)!r}: give the certificate that it belongs to")

    def context(self) -> ssl.SSLContext:
        """The SSL context for the connection.

        Raises:
            OSError: a file is missing or is not a certificate.
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True, kw_only=True)
class RabbitOptions:
    """One broker and the queues on it. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: 5671 with TLS, 5672 without."""
    vhost: str = "/"
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    tls: TlsOptions | None = None
    heartbeat: int = 60
    """pika checks every ``heartbeat`` + 5 seconds and drops the connection if the broker has sent
    nothing since the last check (``HeartbeatChecker``)."""
    queue: str = "model_training"
    """The main queue, into which the backend publishes. The worker's queues are named after it."""
    retry_delays: tuple[float, ...] = (5.0, 30.0, 120.0, 600.0)
    """Available retry delays, shortest first; each has its queue. The longest is the limit."""
    ack_timeout: float = 4 * 3600.0
    """Acknowledgement timeout that the consumer requests. Brokers before 3.11.15 ignore it and
    requeue a message after their ``consumer_timeout``, 30 minutes by default."""
    connect_timeout: float = 10.0
    response_timeout: float = 30.0
    """Time limit of a call, including a new connection."""
    first_reconnect_delay: float = 0.5
    """Delay after the first failure. It doubles, with up to 50 % jitter."""
    max_reconnect_delay: float = 30.0

    def __post_init__(self) -> None:
        check_host(self.host)
        _require(
            self.port is None or 0 < self.port < 65536,
            *("port", self.port, "give a number from 1 to 65535"),
        )
        check_queue(self.queue)
        _require(
            bool(self.retry_delays)
            and list(self.retry_delays) == sorted(set(self.retry_delays))
            and self.retry_delays[0] >= 0.001,
            *("retry_delays", self.retry_delays, "give one or more seconds, ascending"),
        )
        _require(
            1 <= self.heartbeat <= 65535,
            *("heartbeat", self.heartbeat, "give seconds from 1 to 65535"),
        )
        for name in (
            *("ack_timeout", "connect_timeout", "response_timeout"),
            *("first_reconnect_delay", "max_reconnect_delay"),
        ):
            _require(getattr(self, name) > 0, name, getattr(self, name), "give more than 0")

    @property
    def effective_port(self) -> int:
        """The configured port, or the default."""
        return self.port or (5672 if self.tls is None else 5671)

    @property
    def where(self) -> str:
        """The broker's address for messages, without credentials."""
        return f"{self.host}:{self.effective_port}"

    @classmethod
    def from_url(cls, url: str, *, tls: TlsOptions | None = None, **others: Any) -> RabbitOptions:
        """Options from ``amqp://user:password@host:port/vhost``, or ``amqps://`` for TLS.

        Percent-encode reserved characters. ``%2F`` or an empty path is the vhost ``/``.

        Args:
            tls: certificates for ``amqps``.
            others: any other options.

        Raises:
            ValueError: the URL is invalid. The text does not contain the password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("the AMQP URL's host or port is malformed") from None
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise ValueError("give an AMQP URL as amqp[s]://user:password@host:port/vhost")
        if parts.query or parts.fragment:
            raise ValueError(
                "the AMQP URL has a query or fragment: leave it out, and use separate settings"
            )
        if tls is not None and parts.scheme == "amqp":
            raise ValueError("the AMQP URL is without TLS: write amqps://, or turn TLS off")
        named: dict[str, Any] = {
            "host": parts.hostname,
            "port": port,
            "vhost": unquote(parts.path[1:]) or "/",
            "user": None if parts.username is None else unquote(parts.username),
            "password": None if parts.password is None else unquote(parts.password),
            "tls": (tls or TlsOptions()) if parts.scheme == "amqps" else None,
        }
        return cls(**{name: value for name, value in named.items() if value is not None}, **others)


def check_host(host: str) -> None:
    """Check that ``host`` is a valid broker host.

    Raises:
        ValueError: with the remedy.
    """
    # More than one colon is an IPv6 address.
    if not host or set(host) & set("/@[] ") or host.count(":") == 1:
        raise ValueError("give the host's name or address alone, without amqp:// and without port")


def check_queue(name: str) -> None:
    """Check that ``name`` is a valid queue name.

    Raises:
        ValueError: with the remedy.
    """
    # AMQP allows 255 bytes; the worker's queues add suffixes.
    if not 0 < len(name.encode()) <= 200 or name.startswith("amq."):
        raise ValueError("give a name of at most 200 bytes that does not start with amq.")


def _require(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}: {remedy}")

"""Where the store is, who we are to it, and how patient we are with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """Everything that the client needs to know. Its repr shows no secret.

    Raises:
        ValueError: names the field that is wrong and its remedy.
    """

    endpoint_url: str | None = None
    """S3_ENDPOINT_URL: of MinIO and the like; None for Amazon's own."""
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    """None: boto3 looks for credentials in its own places (files, the machine's role)."""
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    connect_timeout: float = 5.0
    """Seconds to a connection."""
    read_timeout: float = 20.0
    """Seconds without a byte from the store."""
    body_seconds: float = 60.0
    """Seconds for the whole of a small object, and then one more for each 100 kB."""
    max_attempts: int = 4
    """Requests that one call may cost when the store fails or throttles, the first included."""
    multipart_threshold: int = 16 * MIB
    """Bytes from which a blob is sent in parts."""
    part_size: int = 8 * MIB
    """Bytes of a part; S3 takes none below 5 MiB but the last."""
    max_pool_connections: int = 16
    """Connections kept: as many as threads that fetch at a time, and some for the others."""

    def __post_init__(self) -> None:
        if self.endpoint_url is not None:
            check_endpoint(self.endpoint_url)
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError(
                "access_key_id and secret_access_key go together: give both or neither"
            )
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token needs access_key_id and secret_access_key")
        for name in ("connect_timeout", "read_timeout", "body_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds, got {getattr(self, name)}")
        for name in ("max_attempts", "multipart_threshold", "max_pool_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.part_size < 5 * MIB:
            raise ValueError(f"part_size must be at least {5 * MIB} bytes, got {self.part_size}")


def check_endpoint(url: str) -> None:
    """See that ``url`` can be a store's.

    Raises:
        ValueError: with the remedy; the text shows no credentials.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("S3_ENDPOINT_URL holds credentials: give them as AWS_ACCESS_KEY_ID")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"S3_ENDPOINT_URL={url!r}: give https://host or http://host, with a port")

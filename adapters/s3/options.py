"""Endpoint, credentials, timeouts and retries of the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

MIB = 1024**2
AddressingStyle = Literal["auto", "path", "virtual"]


@dataclass(frozen=True, kw_only=True)
class S3Options:
    """All settings of the S3 client. Its repr shows no secret.

    Raises:
        ValueError: names the field that is wrong and its remedy.
    """

    endpoint_url: str | None = None
    """S3_ENDPOINT_URL of an S3-compatible store such as MinIO; None for Amazon S3."""
    addressing_style: AddressingStyle | None = None
    """Place of the bucket in a URL: ``path``, ``virtual`` (subdomain of the host) or ``auto``
    (boto3 chooses). None: ``auto`` at Amazon's endpoints, else ``path``, because subdomains need
    DNS entries that few other stores have."""
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    """None: boto3's default credential chain (files, instance role)."""
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    connect_timeout: float = 5.0
    """Seconds to establish a connection."""
    read_timeout: float = 20.0
    """Seconds without a byte from the store."""
    blob_seconds: float = 60.0
    """Seconds for a whole call, plus one for each 100 kB of the blob."""
    max_attempts: int = 4
    """Maximum requests per call when the store fails or throttles, the first included."""
    multipart_threshold: int = 16 * MIB
    """Blob size in bytes from which multipart upload is used."""
    part_size: int = 8 * MIB
    """Bytes of a part; S3 requires 5 MiB for all but the last."""
    max_pool_connections: int = 16
    """Connections kept open: one for each thread that fetches, and some for the others."""

    def __post_init__(self) -> None:
        if self.endpoint_url is not None:
            check_endpoint(self.endpoint_url)
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError(
                "access_key_id and secret_access_key go together: give both or neither"
            )
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token needs access_key_id and secret_access_key")
        for name in ("connect_timeout", "read_timeout", "blob_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds, got {getattr(self, name)}")
        for name in ("max_attempts", "multipart_threshold", "max_pool_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.part_size < 5 * MIB:
            raise ValueError(f"part_size must be at least {5 * MIB} bytes, got {self.part_size}")

    @property
    def effective_addressing_style(self) -> AddressingStyle:
        """The configured style, or the endpoint's default."""
        return self.addressing_style or ("auto" if self.endpoint_url is None else "path")


def check_endpoint(url: str) -> None:
    """Check that ``url`` is a valid endpoint.

    Raises:
        ValueError: with the remedy; the text shows no credentials.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError(
            "S3_ENDPOINT_URL holds credentials: move them to AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("give https://host or http://host:port")

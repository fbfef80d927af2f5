"""Address, credentials and timeouts of Google Cloud Storage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class GcsOptions:
    """All settings of the client.

    Raises:
        ValueError: names the field that is wrong and its remedy.
    """

    project: str | None = None
    """GCS_PROJECT_ID. None: the project that the credentials name."""
    credentials_file: Path | None = None
    """GOOGLE_APPLICATION_CREDENTIALS. None: Application Default Credentials, such as the service
    account of the machine."""
    emulator_url: str | None = None
    """STORAGE_EMULATOR_HOST: an emulator's address, called without credentials."""
    connect_timeout: float = 5.0
    """Seconds to establish a connection."""
    read_timeout: float = 20.0
    """Seconds without a byte from the store."""
    blob_seconds: float = 60.0
    """Seconds for a whole call, plus one for each 100 kB of the blob."""
    retry_seconds: float = 30.0
    """Seconds after which a failed or throttled request is not retried."""
    chunk_size: int = 8 * MIB
    """Bytes of each part of a resumable upload, a multiple of 256 KiB. The client library uploads
    blobs of more than 8 MiB that way."""
    max_pool_connections: int = 16
    """Connections kept open: one for each thread that fetches, and some for the others."""

    def __post_init__(self) -> None:
        if self.emulator_url is not None:
            check_emulator(self.emulator_url)
        for name in ("connect_timeout", "read_timeout", "blob_seconds", "retry_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds, got {getattr(self, name)}")
        if self.chunk_size < 1 or self.chunk_size % (256 * 1024):
            raise ValueError(f"chunk_size must be a multiple of 256 KiB, got {self.chunk_size}")
        if self.max_pool_connections < 1:
            raise ValueError(
                f"max_pool_connections must be at least 1, got {self.max_pool_connections}"
            )


def check_emulator(url: str) -> None:
    """Check that ``url`` is the address of an emulator.

    Raises:
        ValueError: with the remedy.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("give http://host:port")

"""Count the calls to a blob store by operation and kind of blob."""

from __future__ import annotations

import re
import threading
from collections import Counter

from application.ports import Blob, BlobStore, Condition
from domain.location import Bucket, Location

_KINDS = (
    (r"/journal\.json$", "journal"),
    (r"/lease\.json$", "lease"),
    (r"/task\.json$", "request"),
    (r"/cancel\.json$", "cancellation"),
    (r"/checkpoints/", "checkpoint"),
    (r"/styles/", "style of a checkpoint"),
    (r"/previews/", "preview"),
    (r"/report/", "report"),
    (r"/logs/", "log"),
    (r"^models/", "weights"),
    (r"(?i)\.txt$", "caption"),
    (r"^jobs/[^/]*/$", "files of the job"),
)


class CountingBlobStore:
    """Port ``BlobStore`` around another one. Counts calls by operation and kind of blob."""

    def __init__(self, inner: BlobStore) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read, and count it."""
        self._count("read", at.key)
        return self._inner.get(at, max_bytes=max_bytes)

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        """Write, and count it."""
        self._count("write", at.key)
        return self._inner.put(at, data, content_type=content_type, condition=condition)

    def delete(self, at: Location) -> None:
        """Delete, and count it."""
        self._count("delete", at.key)
        self._inner.delete(at)

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """List, and count it."""
        self._count("list", prefix)
        return self._inner.list(bucket, prefix)

    def _count(self, operation: str, key: str) -> None:
        with self._lock:
            self.calls[f"{operation} {kind(key)}"] += 1


def kind(key: str) -> str:
    """The kind of blob that a key or prefix is for."""
    return next((name for pattern, name in _KINDS if re.search(pattern, key)), "image")

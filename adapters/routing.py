"""Port ``BlobStore`` over several stores, selected by the scheme of the location."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from application.ports import Blob, BlobDenied, BlobStore, Condition
from domain.location import Bucket, Location


class BlobStoreByScheme:
    """Reads and writes each blob in the store of its scheme. May be shared by threads.

    A store is opened on first use: a worker without ``gs://`` tasks needs neither Google's
    library nor its credentials.

    Args:
        stores: opens the store of each scheme.
    """

    def __init__(self, stores: Mapping[str, Callable[[], BlobStore]]) -> None:
        self._stores = stores
        self._opened: dict[str, BlobStore] = {}
        self._lock = threading.Lock()

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read a blob."""
        return self._store(at.scheme).get(at, max_bytes=max_bytes)

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        condition: Condition | None = None,
    ) -> str:
        """Write a blob."""
        store = self._store(at.scheme)
        return store.put(at, data, content_type=content_type, condition=condition)

    def delete(self, at: Location) -> None:
        """Remove a blob."""
        self._store(at.scheme).delete(at)

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """Blobs by prefix."""
        return self._store(bucket.scheme).list(bucket, prefix)

    def _store(self, scheme: str) -> BlobStore:
        with self._lock:
            if scheme not in self._stores:
                known = " and ".join(f"{name}://" for name in self._stores)
                raise BlobDenied(
                    f"{scheme}:// is not allowed, only {known}: to allow it, add a "
                    f"{scheme}:// bucket to ALLOWED_IMAGE_BUCKETS"
                )
            if scheme not in self._opened:
                self._opened[scheme] = self._stores[scheme]()
            return self._opened[scheme]

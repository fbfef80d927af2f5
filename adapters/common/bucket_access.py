"""Which buckets of a store a worker may read and write."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from application.ports import BlobDenied
from domain.location import Location


@dataclass(frozen=True)
class BucketAccess:
    """Names of the allowed buckets; writable ones may be read, too."""

    scheme: str
    readable: Collection[str]
    writable: Collection[str]

    def check_readable(self, bucket: str) -> None:
        """Raise ``BlobDenied`` for a bucket that may not be read."""
        allowed = {*self.readable, *self.writable}
        if bucket not in allowed:
            raise BlobDenied(
                f"bucket {self.scheme}://{bucket} is not allowed, only "
                f"{', '.join(sorted(allowed))}: to allow it, add it to ALLOWED_IMAGE_BUCKETS"
            )

    def check_writable(self, bucket: str) -> None:
        """Raise ``BlobDenied`` for a bucket that may not be written."""
        self.check_readable(bucket)
        if bucket not in self.writable:
            raise BlobDenied(
                f"bucket {self.scheme}://{bucket} is read-only: "
                "the worker writes only to its own buckets"
            )


def check_key(at: Location) -> None:
    """Raise ``BlobDenied`` for a key that UTF-8 cannot encode."""
    try:
        at.key.encode()
    except UnicodeEncodeError:
        raise BlobDenied(f"{at.key!r} is not valid Unicode and cannot be a key") from None

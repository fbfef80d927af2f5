"""Port ``BlobStore`` on folders, on one machine or a shared disk.

A bucket is a folder and a key is a path in it. A write goes to a temporary file, is synced to
disk, and replaces the blob atomically. A file lock, which the system frees when its holder dies,
serialises the writers of a bucket.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adapters.common.files import sync_folder, write_atomically
from application.ports import (
    Blob,
    BlobDenied,
    BlobMissing,
    BlobTooLarge,
    BlobUnavailable,
    Condition,
    IfAbsent,
    IfMatch,
    PreconditionFailed,
)
from domain.location import Bucket, InvalidLocation, Location

RESERVED = ".store"
"""Folder in a bucket for the lock and for temporary files; no key can name it."""

_NOT_A_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


class FileBlobStore:
    """Port ``BlobStore``. May be shared by threads, and its folders by processes.

    Args:
        buckets: each bucket's folder, created by the first write.
        read_only: buckets whose folders belong to a user. They are never written to, and links
            that lead out of them are followed.
    """

    def __init__(self, buckets: Mapping[str, Path], read_only: Collection[str] = ()) -> None:
        self._folders = {name: Path(folder) for name, folder in buckets.items()}
        self._read_only = frozenset(read_only)

    def get(self, at: Location, *, max_bytes: int | None = None) -> Blob:
        """Read a blob."""
        path = self._path(at)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if max_bytes is not None and size > max_bytes:
                    raise BlobTooLarge(f"{path} has {size} bytes, more than {max_bytes}")
                data = file.read()
        except OSError as error:
            if error.errno in _NOT_A_FILE:
                raise BlobMissing(str(at)) from None
            raise _translated(error, path) from error
        return Blob(data, _etag(data))

    def put(
        self,
        at: Location,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",  # noqa: ARG002 - a file has none
        condition: Condition | None = None,
    ) -> str:
        """Write a blob."""
        with self._writing(at) as path:
            if condition is not None:
                _check(path, condition)
            _make_folder(path.parent)
            write_atomically(path, data, temporary=self._folders[at.bucket] / RESERVED / "coming")
        return _etag(data)

    def delete(self, at: Location) -> None:
        """Remove a blob, and folders that are then empty."""
        with self._writing(at) as path:
            try:
                path.unlink()
            except OSError as error:
                if error.errno not in _NOT_A_FILE:
                    raise
                return
            sync_folder(path.parent)
            root = self._folders[at.bucket]
            emptied = path.parent
            while emptied != root and not any(emptied.iterdir()):
                emptied.rmdir()
                emptied = emptied.parent

    def list(self, bucket: Bucket, prefix: str) -> list[Location]:
        """Blobs by prefix. Skips files whose names are not valid keys."""
        root = self._folder(bucket.name)
        found = []
        try:
            for file in _files(root, root / prefix.rpartition("/")[0]):
                key = file.relative_to(root).as_posix()
                if key.startswith(prefix):
                    try:
                        found.append(bucket.at(key))
                    except InvalidLocation:
                        continue
        except OSError as error:
            raise _translated(error, root) from error
        return sorted(found)

    def _folder(self, bucket: str) -> Path:
        if bucket not in self._folders:
            known = ", ".join(sorted(self._folders))
            raise BlobDenied(
                f"bucket {bucket!r} is not allowed, only {known}: to allow it, add it to "
                "ALLOWED_IMAGE_BUCKETS"
            )
        return self._folders[bucket]

    def _path(self, at: Location) -> Path:
        root = self._folder(at.bucket)
        path = root / at.key
        if at.key.split("/")[0] == RESERVED:
            raise BlobDenied(f"{path}: the folder {RESERVED} is reserved; use another key")
        try:
            inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
        except ValueError:
            raise BlobDenied(f"{at}: the key is not a valid file name") from None
        if not inside and at.bucket not in self._read_only:
            raise BlobDenied(f"{path}: a link leads out of the bucket; put the file itself there")
        return path

    @contextmanager
    def _writing(self, at: Location) -> Iterator[Path]:
        """The blob's path, under the bucket's write lock."""
        path, root = self._path(at), self._folders[at.bucket]
        if at.bucket in self._read_only:
            raise BlobDenied(f"{at}: the bucket {at.bucket!r} is read-only")
        try:
            _make_folder(root / RESERVED)
            with (root / RESERVED / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield path
        except OSError as error:
            raise _translated(error, path) from error


def _check(path: Path, condition: Condition) -> None:
    try:
        found = _etag(path.read_bytes())
    except FileNotFoundError:
        found = None
    match condition:
        case IfAbsent() if found is not None:
            raise PreconditionFailed(f"{path} exists")
        case IfMatch(etag) if found != etag:
            raise PreconditionFailed(f"{path} has changed since it was read")


def _make_folder(folder: Path) -> None:
    """Create the folder and its parents, synced to disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _files(root: Path, start: Path) -> Iterator[Path]:
    """The files below ``start``, a folder of the bucket at ``root``."""

    def raise_others(error: OSError) -> None:
        if error.errno not in _NOT_A_FILE:
            raise error

    for folder, below, names in os.walk(start, onerror=raise_others):
        if Path(folder) == root and RESERVED in below:
            below.remove(RESERVED)
        for name in names:
            file = Path(folder, name)
            if file.is_file():
                yield file


def _translated(error: OSError, path: Path) -> BlobDenied | BlobUnavailable:
    text = f"{path}: {error.strerror or error}"
    # Retries do not help with these. Other errors may pass: a full disk, an unmounted share.
    permanent = error.errno in _NO_RIGHT | _NO_PLACE
    return BlobDenied(text) if permanent else BlobUnavailable(text)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

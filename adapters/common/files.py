"""Files and folders on this machine: free space, access, and writes that leave no partial file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryFile


def write_atomically(path: Path, data: bytes, *, temporary: Path) -> None:
    """Create or replace a file, so that readers see all of it or nothing, synced to disk.

    Args:
        temporary: a path on the same file system for the incomplete file; it is overwritten.
    """
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the folder's list of files to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def nearest_existing(path: Path) -> Path:
    """The path itself if it exists, even as a broken link; else its nearest existing parent."""
    nearest = path.absolute()
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    return nearest


def free_space(folder: Path, min_gigabytes: float) -> tuple[bool, str]:
    """Whether a folder has enough free space, and a text with the amount or the error."""
    try:
        free = shutil.disk_usage(nearest_existing(folder)).free / 1e9
    except OSError as error:  # for example a link to a disk that is not mounted
        return False, f"{folder} cannot be read ({error.strerror or error})"
    if free < min_gigabytes:
        return False, f"{free:.1f} GB free in {folder}; {min_gigabytes:g} GB are needed"
    return True, f"{free:.0f} GB free in {folder}"


def lack_of_space(folder: Path, min_gigabytes: float) -> str | None:
    """The text of ``free_space`` if there is too little; None if there is enough."""
    enough, found = free_space(folder, min_gigabytes)
    return None if enough else found


def why_not_writable(folder: Path) -> str | None:
    """Why an existing or future folder is not writable; None if it is. Leaves no trace."""
    nearest = nearest_existing(folder)
    if not os.path.isdir(nearest):
        return f"{nearest} is not a folder"
    try:
        with TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return f"{nearest} cannot be written ({error.strerror or error})"

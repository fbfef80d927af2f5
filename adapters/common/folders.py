"""Existing or future folders, and their free space."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """The path itself if it exists, even as a broken link; else its nearest existing parent."""
    nearest = path.absolute()
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    return nearest


def free_space(folder: Path, min_gigabytes: float) -> tuple[bool, str]:
    """Whether a folder has enough free space, and a text with the amount."""
    free = shutil.disk_usage(nearest_existing(folder)).free / 1e9
    if free < min_gigabytes:
        return False, f"{free:.1f} GB free in {folder}; {min_gigabytes:g} GB are needed"
    return True, f"{free:.0f} GB free in {folder}"


def why_not_writable(folder: Path) -> str | None:
    """Why an existing or future folder is not writable; None if it is. Leaves no trace."""
    nearest = nearest_existing(folder)
    if not os.path.isdir(nearest):
        return f"{nearest} is not a folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} cannot be written"

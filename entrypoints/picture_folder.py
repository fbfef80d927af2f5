"""A folder of pictures as a person gives it."""

from __future__ import annotations

from pathlib import Path

from domain.location import InvalidLocation, Location
from entrypoints.exits import UsageError

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
OTHER_SUFFIXES = {".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".psd"}
"""Files that a person may have meant as pictures: looked at, so that they are refused by name."""


def find_pictures(folder: Path) -> list[str]:
    """Names of the files in ``folder`` that are or may be meant as pictures, in order.

    Raises:
        UsageError: there is no such folder, no such file in it, or a name that cannot be a key.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder that holds the pictures")
    suffixes = PICTURE_SUFFIXES | OTHER_SUFFIXES
    names = sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes and file.is_file() and not file.name.startswith(".")
    )
    if not names:
        raise UsageError(f"{folder}: no picture in it; put JPEG, PNG or WebP files there")
    for name in names:
        try:
            Location("pictures", name)
        except InvalidLocation as error:
            raise UsageError(f"{folder}: {error}; rename the file") from None
    return names

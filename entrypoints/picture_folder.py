"""A folder of pictures as a person gives it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from domain.location import InvalidLocation, Location
from entrypoints.exits import UsageError

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"}
OTHER_SUFFIXES = {".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".psd"}
"""Files that a person may have meant as pictures: looked at, so that they are refused by name."""

CAPTION_SUFFIXES = (".txt", ".TXT")


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


def find_caption(picture: Path) -> Path | None:
    """The file that holds a picture's caption, where there is one."""
    beside = (picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    return next((path for path in beside if path.is_file()), None)


def passed_over(folder: Path, names: Collection[str], besides: Path) -> list[str]:
    """What else lies in ``folder``, each with why it is not used where that may be a mistake.

    Args:
        names: the pictures that were found there.
        besides: of the results; nobody means these.
    """
    stems = {Path(name).stem for name in names}
    found = []
    for path in sorted(folder.iterdir()):
        ours = besides.resolve().is_relative_to(path.resolve())
        if path.name in names or path.name.startswith(".") or ours:
            continue
        if path.is_dir():
            found.append(f"{path.name}/ (a folder)")
        elif path.suffix not in CAPTION_SUFFIXES:
            found.append(path.name)
        elif path.stem not in stems:
            found.append(f"{path.name} (no picture of that name)")
    return found

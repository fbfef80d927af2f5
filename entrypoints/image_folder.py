"""A folder of images as a person gives it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from domain.location import InvalidLocation, Location
from entrypoints.exit_codes import UsageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"}
OTHER_SUFFIXES = {".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".psd"}
"""Files that a person may have meant as images: looked at, so that they are refused by name."""

CAPTION_SUFFIXES = (".txt", ".TXT")
CAPTIONS_OF_OTHERS = {".caption", ".jsonl"}
"""Where other trainers look for captions."""


def find_images(folder: Path) -> list[str]:
    """Names of the files in ``folder`` that are or may be meant as images, in order.

    Raises:
        UsageError: there is no such folder, it cannot be read, no such file is in it, or one has
            a name that cannot be a key.
    """
    try:
        names = _names(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror or error})") from None
    for name in names:
        try:
            Location("images", name)
        except InvalidLocation as error:
            raise UsageError(f"{folder}: {error}; rename the file") from None
    return names


def _names(folder: Path) -> list[str]:
    if folder.is_file():
        raise UsageError(f"{folder}: is a file; give the folder that holds the images")
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder that holds the images")
    suffixes = IMAGE_SUFFIXES | OTHER_SUFFIXES
    names = sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in suffixes and file.is_file() and not file.name.startswith(".")
    )
    if names:
        return names
    below = [f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir()]
    if below:
        raise UsageError(
            f"{folder}: no image in it, and folders in it are not searched; give the one that "
            f"holds the images, such as {below[0]}"
        )
    raise UsageError(f"{folder}: no image in it; put JPEG, PNG or WebP files there")


def read_own(path: Path) -> bytes:
    """A file that a person has named, or that lies in a folder which they have named.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None


def find_caption(image: Path) -> Path | None:
    """The file that holds an image's caption, where there is one."""
    beside = (image.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    return next((path for path in beside if path.is_file()), None)


def passed_over(folder: Path, names: Collection[str], besides: Path) -> list[str]:
    """What else lies in ``folder``, each with why it is not used where that may be a mistake.

    Args:
        names: the images that were found there.
        besides: of the results; nobody means these.
    """
    found = []
    for path in sorted(folder.iterdir()):
        ours = besides.resolve().is_relative_to(path.resolve())
        if path.name in names or path.name.startswith(".") or ours:
            continue
        if path.suffix not in CAPTION_SUFFIXES or not path.is_file() or _lacks(path, names):
            found.append(f"{path.name}{_why(path, names)}")
    return found


def _lacks(caption: Path, images: Collection[str]) -> bool:
    return caption.stem not in {Path(name).stem for name in images}


def _why(path: Path, images: Collection[str]) -> str:
    """Why a file is not used, where that is not plain from its name."""
    if path.is_dir():
        return "/ (a folder)"
    if not path.exists():
        return " (a link to nothing)"
    if path.suffix in CAPTIONS_OF_OTHERS:
        return " (a caption is <name>.txt)"
    if path.suffix not in CAPTION_SUFFIXES:
        return ""
    if path.stem in images:
        return f" (a caption is {Path(path.stem).stem}.txt)"
    return " (no image of that name)"

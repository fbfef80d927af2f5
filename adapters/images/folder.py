"""Find the images and captions in a user's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from domain.captions import MAX_CAPTION_BYTES, SUFFIXES, CaptionRejected, read_caption
from domain.errors import UserError
from domain.image import TrainingImage
from domain.location import InvalidLocation, Location

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif",
    ".gif", ".bmp", ".tif", ".tiff", ".jxl", ".psd",
}  # fmt: skip
"""The second row's formats are not supported: they are inspected, and rejected by name."""

CAPTIONS_OF_OTHERS = {".caption", ".jsonl"}
"""Suffixes of other trainers' caption files."""

HIDDEN_BY_WINDOWS = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
NOT_DOWNLOADED = ".icloud"
"""Suffix of placeholders for files that are only in iCloud."""

_REPEATED = re.compile(r"[1-9][0-9]*_")
"""Start of the names of kohya's folders with repeats per epoch."""
MAX_REPEATS = 1000
"""More than any training needs: a larger number is a date, or another number by chance."""


def find_images(folder: Path, *, repeats_from_folders: bool = False) -> list[str]:
    """Sorted paths, relative to ``folder``, of all images and of files in unsupported formats.

    Args:
        repeats_from_folders: search only the subfolders named like ``10_style``.

    Raises:
        UserError: the folder does not exist, is unreadable or has no images, or a file's name
            is not valid in a key.
    """
    try:
        if folder.is_file():
            raise UserError(f"{folder}: is a file; give the folder that holds the images")
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder that holds the images")
        if repeats_from_folders:
            repeated = _repeated(folder)
            _check_repeats(repeated)
            names = [f"{below.name}/{name}" for below in repeated for name in _images_in(below)]
        else:
            names = _images_in(folder)
        if not names:
            raise UserError(f"{folder}: {_nothing_found(folder, repeats_from_folders)}")
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from None
    for name in names:
        try:
            Location("images", name)
        except InvalidLocation as error:
            raise UserError(f"{folder}: {error}; rename the file") from None
    return names


def _images_in(folder: Path) -> list[str]:
    return sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not _is_hidden(file)
    )


def _repeated(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and _REPEATED.match(path.name)
    )


def _check_repeats(folders: Sequence[Path]) -> None:
    for folder in folders:
        number = folder.name.partition("_")[0]
        if int(number) > MAX_REPEATS:
            raise UserError(
                f"{folder}: its name means {number} repeats per epoch; rename it, for at most "
                f"{MAX_REPEATS}"
            )


def _nothing_found(folder: Path, repeats_from_folders: bool) -> str:
    if repeats_from_folders:
        return "no image in folders named like 10_style; put JPEG, PNG, WebP or AVIF files there"
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    if not below:
        return "it has no images; put JPEG, PNG, WebP or AVIF files there"
    text = "it has no images, and its subfolders are not searched; give the one with the images"
    if repeated := _repeated(folder):
        return f"{text}, or --repeats-from-folders for folders such as {repeated[0].name}/"
    return f"{text}, such as {below[0].name}/"


def read_own(path: Path) -> bytes:
    """Read a file given by the user.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def find_caption(image: Path, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    """The path of an image's caption file, if there is one.

    Args:
        suffixes: suffixes of caption files, in the order of their precedence.
    """
    beside = (image.with_suffix(suffix) for suffix in suffixes)
    return next((path for path in beside if path.is_file()), None)


def unusable_captions(folder: Path, images: Sequence[TrainingImage]) -> list[str]:
    """A line for each caption file that cannot be used, with the reason.

    Args:
        images: images in ``folder``, with the captions that could be read.

    Raises:
        UserError: a caption file cannot be read.
    """
    lines = []
    for image in images:
        path = None if image.caption else find_caption(folder / image.name)
        if path is not None and (fault := _caption_fault(read_own(path))):
            lines.append(f"the caption {path.name} is left out: {fault}")
    return lines


def _caption_fault(data: bytes) -> str | None:
    if len(data) > MAX_CAPTION_BYTES:
        return f"it is larger than {MAX_CAPTION_BYTES // 1024} KB"
    try:
        read_caption(data)
    except CaptionRejected as rejected:
        return str(rejected)
    return None


def passed_over(
    folder: Path,
    names: Collection[str],
    besides: Path,
    suffixes: Sequence[str] = SUFFIXES,
) -> list[str]:
    """List the unused files in ``folder`` and in the folders of ``names``, with the reason if that
    may be a mistake. Hidden files are only counted.

    Args:
        names: the images found in ``folder``.
        besides: the results' folder, which is not listed.
        suffixes: suffixes of caption files.
    """
    found, hidden, away = [], 0, 0
    results = Path(os.path.realpath(besides))  # unlike ``resolve``, it accepts loops of links
    for path in _beside(folder, names, suffixes):
        if _is_hidden(path):
            hidden += 1
            away += path.suffix == NOT_DOWNLOADED
        elif not results.is_relative_to(os.path.realpath(path)):
            name = path.relative_to(folder).as_posix()
            found.append(f"{name}{_why(path, names, suffixes)}")
    if hidden:
        files = "1 hidden file" if hidden == 1 else f"{hidden} hidden files"
        found.insert(0, files + (f" ({away} in iCloud only: download first)" if away else ""))
    return found


def _beside(folder: Path, names: Collection[str], suffixes: Collection[str]) -> Iterator[Path]:
    """Yield the paths in the images' folders that are neither an image nor its caption."""
    images = [folder / name for name in names]
    used = {*images, *(image.with_suffix(suffix) for image in images for suffix in suffixes)}
    inside = {image.parent for image in images}
    for below in sorted({folder, *inside}):
        for path in sorted(below.iterdir()):
            if (path in used and path.is_file()) or path in inside:
                continue
            yield path


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in HIDDEN_BY_WINDOWS


def _why(path: Path, images: Collection[str], suffixes: Sequence[str]) -> str:
    """Why a file is not used, or an empty text if its name shows that."""
    if path.is_dir():
        return "/ (a folder)"
    if not path.exists():
        return " (a link to nothing)"
    if path.suffix in suffixes:
        if path.stem in {Path(name).name for name in images}:
            return f" (a caption is {Path(path.stem).stem}{suffixes[0]})"
        return " (no image of that name)"
    if path.suffix in {*SUFFIXES, *CAPTIONS_OF_OTHERS}:
        return f" (a caption is <name>{suffixes[0]})"
    return ""

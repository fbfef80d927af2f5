"""A style's name and credits, shown by programs that load its file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from domain.errors import UserError

MAX_NAME = 100
"""Most characters of a name: file systems allow 255 bytes, and programs show fewer."""
_FORBIDDEN_CHARACTER = r'[\x00-\x1f<>:"/\\|?*]'
_FORBIDDEN = re.compile(_FORBIDDEN_CHARACTER + "|^[. ]|[. ]$")
"""Characters that Windows forbids in file names, or that end ``<lora:name:1>`` in a prompt."""


class InvalidName(UserError, ValueError):
    """The name is not a valid file name."""


@dataclass(frozen=True)
class Label:
    """A style's name and credits. They do not affect its training."""

    name: str | None = None
    """The file's name without its extension; None means ``style_<style_id>``."""
    author: str | None = None
    license: str | None = None
    thumbnail: str | None = None
    """A small image as a ``data:`` URL."""

    def __post_init__(self) -> None:
        if self.name is None:
            return
        if not self.name or len(self.name) > MAX_NAME or _FORBIDDEN.search(self.name):
            raise InvalidName(
                f"{self.name!r} is not a name for a file: give 1 to {MAX_NAME} characters without "
                '< > : " / \\ | ? *, not beginning or ending with a dot or space'
            )


UNNAMED = Label()


def file_name_from(text: str) -> str | None:
    """Turn the text into a valid name; None if nothing remains."""
    name = re.sub(_FORBIDDEN_CHARACTER, "_", text).strip(". ")[:MAX_NAME].strip(". ")
    return name or None

"""A style's name and credits, shown by programs that load its file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from domain.errors import UserError

MAX_NAME = 100
"""Most characters of a name."""
MAX_BYTES = 255 - len(".safetensors")
"""Most bytes of a name in UTF-8, so that its file's name has at most 255."""
_FORBIDDEN_CHARACTER = r'[\x00-\x1f<>:"/\\|?*\ud800-\udfff]'
_FORBIDDEN = re.compile(_FORBIDDEN_CHARACTER + "|^[. ]|[. ]$")
"""Characters that Windows forbids in file names, or that end ``<lora:name:1>`` in a prompt, and
surrogates, which stand for bytes that are not UTF-8."""


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
        if not self.name or _FORBIDDEN.search(self.name) or self.name != _cut(self.name):
            raise InvalidName(
                f"{self.name!r} is not a name for a file: give 1 to {MAX_NAME} characters, of at "
                f"most {MAX_BYTES} bytes in UTF-8, without "
                '< > : " / \\ | ? *, not beginning or ending with a dot or space'
            )


UNNAMED = Label()


def file_name_from(text: str) -> str | None:
    """Turn the text into a valid name; None if nothing remains."""
    name = _cut(re.sub(_FORBIDDEN_CHARACTER, "_", text).strip(". ")).strip(". ")
    return name or None


def _cut(name: str) -> str:
    """The beginning of a name that is short enough."""
    return name[:MAX_NAME].encode()[:MAX_BYTES].decode(errors="ignore")

"""Make external text safe to print: control characters would be run by the terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def printable(text: str) -> str:
    """Replace every invisible character by its JSON escape.

    For example, escape characters become ``\\u001b``, line breaks ``\\n``, and right-to-left
    overrides ``\\u202e``. JSON text stays JSON text with the same meaning.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """Printable text in one line: line breaks become spaces."""
    return printable(" ".join(text.splitlines()))


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print one line at a terminal: escaped, without markup and emoji codes, and not wrapped."""
    line = one_line(text)
    console.print(line, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)

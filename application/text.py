"""Text from outside, made safe to print: a terminal obeys control characters."""

from __future__ import annotations

import json


def printable(text: str) -> str:
    """The text with every character that cannot be seen as its JSON escape.

    Escape sequences, line breaks, and marks that turn the direction of writing come out as
    ``\\u001b``, ``\\n`` and ``\\u202e``. JSON text stays JSON text with the same meaning.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """Printable text in one line: line breaks become spaces."""
    return printable(" ".join(text.splitlines()))

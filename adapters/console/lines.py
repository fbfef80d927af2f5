"""Print lines at a terminal."""

from __future__ import annotations

from rich.console import Console

from adapters.common.text import one_line


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print one line: escaped, without markup, and not wrapped."""
    console.print(one_line(text), style=style, markup=False, highlight=False, soft_wrap=True)

"""An error that the caller can fix: its text names the remedy."""

from __future__ import annotations


class UserError(Exception):
    """A request or a setting is wrong; each line of the text has a remedy."""

"""Colours shared by the report's drawings; the page inverts them in dark mode."""

PAPER = "#ffffff"
INK = "#26241f"
FAINT = "#76716a"
ACCENT = "#2f6690"

"""The colours that the report's drawings share; a browser turns them around in the dark."""

PAPER = "#ffffff"
INK = "#26241f"
FAINT = "#76716a"
ACCENT = "#2f6690"

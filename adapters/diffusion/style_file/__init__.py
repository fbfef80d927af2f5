"""The style as a file: written, read in other programs' forms, and converted."""

"""A self-contained page on a finished run: previews, curves, parameters, images."""

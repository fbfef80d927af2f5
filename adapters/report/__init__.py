"""A finished run as a page that opens anywhere: previews, curves, parameters, images."""

"""Recognise, decode (in child processes), check and scale down image files."""

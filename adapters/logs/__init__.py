"""Logging: the job of each line, redaction, formats, destinations."""

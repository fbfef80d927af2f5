"""Logging: job context, redaction, formats, destinations."""

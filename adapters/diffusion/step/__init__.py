"""One training step: its passes, what follows them, and how both are run fast."""

"""Several runs at a time over one base model."""

"""LoRA files: written for other programs, read from other programs, and converted."""

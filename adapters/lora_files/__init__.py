"""LoRA files: write them for other programs, read theirs, and convert."""

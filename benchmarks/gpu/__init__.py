"""What the trainer does on a GPU, measured: see ``__main__``."""

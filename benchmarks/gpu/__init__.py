"""Benchmarks of the trainer on a GPU: see ``__main__``."""

"""Adapters to the outside world. Each module implements ports with one library."""

"""Functions that several adapters share."""

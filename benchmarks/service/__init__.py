"""The cost of the service around the training."""

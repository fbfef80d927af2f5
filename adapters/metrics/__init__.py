"""Prometheus metrics of a worker. Decorators measure the ports."""

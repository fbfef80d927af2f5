"""What a worker does, as Prometheus metrics. The ports are measured by decorating them."""

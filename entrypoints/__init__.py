"""Who starts it. The only place that reads the environment and knows the concrete adapters."""

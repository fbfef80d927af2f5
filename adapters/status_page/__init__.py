"""HTTP server of a worker: health checks, metrics, and a status page."""

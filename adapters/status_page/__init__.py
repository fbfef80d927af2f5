"""What a worker shows of itself by HTTP: its health, its metrics, and a page for a person."""

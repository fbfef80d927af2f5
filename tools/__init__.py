"""Programs that keep the repository, not part of the product."""

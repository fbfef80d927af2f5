"""Programs to maintain the repository; not part of the product."""

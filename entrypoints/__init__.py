"""The commands. Only this package reads the environment and chooses adapters."""

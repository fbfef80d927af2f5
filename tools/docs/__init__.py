"""Documents of the contract with the platform, generated from the code's own models."""

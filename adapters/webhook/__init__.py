"""The platform's backend over HTTP, with requests."""

"""The adapters, and the denoiser with them on it."""

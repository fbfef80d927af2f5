"""The trainer: LoRAs for Stable Diffusion 1.5, on the models of diffusers."""

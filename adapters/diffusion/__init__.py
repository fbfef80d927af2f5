"""The trainer: LoRA adapters for Stable Diffusion 1.5, with diffusers and PEFT."""

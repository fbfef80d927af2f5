"""A wide denoiser's passes over its feature maps, several in one, on a GPU."""

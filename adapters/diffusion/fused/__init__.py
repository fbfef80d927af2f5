"""Fused operations on the feature maps of a wide UNet, for a GPU."""

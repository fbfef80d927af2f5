"""The frozen base model: read, told from others, and brought onto a device."""

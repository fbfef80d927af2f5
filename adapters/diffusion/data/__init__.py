"""Training data: captions, encoded images, batches, random numbers."""

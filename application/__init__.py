"""What we do with a training job. Imports the domain only; the world is behind ports."""

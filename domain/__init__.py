"""The model of a training job. Imports the standard library only."""

"""The use cases of a training job. Imports only the domain; external systems are behind ports."""

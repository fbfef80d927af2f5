"""The frozen base model: loading, checking, identifying."""

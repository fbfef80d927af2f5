"""What several adapters share: plain functions, without a port."""

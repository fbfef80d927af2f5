"""Blobs in Google Cloud Storage, with google-cloud-storage."""

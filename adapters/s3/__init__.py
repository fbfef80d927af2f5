"""Blobs in S3 or an S3-compatible store, with boto3."""

"""What a training job is. Standard library only; knows no broker, bucket, backend or tensor."""

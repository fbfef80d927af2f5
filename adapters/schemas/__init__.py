"""The platform's messages: the task that comes in, and the webhooks' bodies that go out."""

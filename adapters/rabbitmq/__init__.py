"""The task queue on RabbitMQ 3.10 or later, over AMQP 0-9-1."""

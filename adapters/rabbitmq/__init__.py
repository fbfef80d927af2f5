"""RabbitMQ over AMQP 0-9-1: 3.10 and later; written for 3.12, 3.13 and 4.x."""

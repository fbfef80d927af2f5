"""RabbitMQ by AMQP 0-9-1: works on 3.10, written for 3.12, 3.13 and 4.x."""

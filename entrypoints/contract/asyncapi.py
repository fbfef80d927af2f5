"""AsyncAPI of the queue: the message that starts a job, and where messages go from there."""

from __future__ import annotations

from typing import Any

from adapters.wire import MAX_MESSAGE_BYTES
from entrypoints.contract.schemas import package_version, reference, task_schemas

QUEUE = "model_training"

EXAMPLE_TASK = {
    "task_id": "550e8400-e29b-41d4-a716-446655440000",
    "type": "model_training",
    "data": {
        "style_id": 123,
        "images": [f"s3://stylelicense-media/training/123/image_{n}.jpg" for n in range(10)],
        "tags": ["watercolor", "portrait"],
        "parameters": {"epochs": 200, "learning_rate": 0.0001, "batch_size": 1},
    },
    "callback_url": "https://stylelicense.com/api/webhooks/training/complete",
    "created_at": "2025-01-20T10:00:00.000Z",
}


def asyncapi() -> dict[str, Any]:
    """The document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Style trainer: queue of tasks",
            "version": package_version(),
            "description": "The backend publishes a task; a worker takes it, trains the style and "
            "tells the backend by webhooks. The worker is the receiver.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": _server("amqp", "5672"),
            "brokerOverTls": _server("amqps", "5671"),
        },
        "channels": {
            "tasks": {
                "address": QUEUE,
                "description": "Published to the default exchange with the queue's name as "
                "routing key, persistent. Whoever declares the queue does so without arguments: "
                "with any other declaration the broker refuses one of the two sides.",
                "messages": {"task": {"$ref": "#/components/messages/task"}},
                "bindings": {"amqp": _queue(QUEUE)},
            },
        },
        "operations": {
            "receiveTask": {
                "action": "receive",
                "summary": "Train one style",
                "description": "One message at a time, acknowledged after the outcome is "
                "announced. A message that repeats a `task_id` is acknowledged and changes "
                "nothing.",
                "channel": {"$ref": "#/channels/tasks"},
                "messages": [{"$ref": "#/channels/tasks/messages/task"}],
                "bindings": {"amqp": {"ack": True, "bindingVersion": "0.3.0"}},
            },
        },
        "components": {
            "messages": {
                "task": {
                    "name": "TaskMessage",
                    "title": "A task",
                    "summary": f"JSON in UTF-8, at most {MAX_MESSAGE_BYTES // 1024} KiB.",
                    "contentType": "application/json",
                    "payload": reference("TaskMessage"),
                    "examples": [{"name": "task", "payload": EXAMPLE_TASK}],
                }
            },
            "schemas": task_schemas(),
        },
    }


def _server(protocol: str, port: str) -> dict[str, Any]:
    return {
        "host": "{host}:{port}",
        "protocol": protocol,
        "protocolVersion": "0-9-1",
        "pathname": "/{vhost}",
        "variables": {
            "host": {"default": "localhost", "description": "The setting RABBITMQ_HOST."},
            "port": {"default": port, "description": "The setting RABBITMQ_PORT."},
            "vhost": {"default": "", "description": "The setting RABBITMQ_VHOST."},
        },
    }


def _queue(name: str) -> dict[str, Any]:
    queue = {"name": name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    return {"is": "queue", "queue": queue, "bindingVersion": "0.3.0"}

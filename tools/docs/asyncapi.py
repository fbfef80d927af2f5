"""AsyncAPI document of the queues: the task message, retry queues and dead letters."""

from __future__ import annotations

from typing import Any

from adapters.rabbitmq import message_properties
from adapters.rabbitmq.topology import Topology
from application.ports import MAX_MESSAGE_BYTES
from entrypoints.cli import version
from entrypoints.settings import Settings
from tools.docs.schemas import Schema, reference, task_schemas

QUEUE: str = Settings.model_fields["rabbitmq_queue"].default
DELAYS: tuple[float, ...] = Settings.model_fields["retry_delays"].default
IMAGES: str = Settings.model_fields["aws_storage_bucket_name"].default
TOPOLOGY = Topology(QUEUE, DELAYS)

EXAMPLE_TASK = {
    "task_id": "550e8400-e29b-41d4-a716-446655440000",
    "type": "model_training",
    "data": {
        "style_id": 123,
        "images": [f"s3://{IMAGES}/training/123/image_{n}.jpg" for n in range(10)],
        "tags": ["watercolor", "portrait"],
        "parameters": {"epochs": 200, "learning_rate": 0.0001, "batch_size": 1},
    },
    "callback_url": "https://stylelicense.com/api/webhooks/training/complete",
    "created_at": "2025-01-20T10:00:00.000Z",
}


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Style trainer: queue of tasks",
            "version": version(),
            "description": "The backend publishes a task; a worker receives it, trains the "
            "style and notifies the backend by webhooks. The worker is the "
            "receiver.",
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
                "routing key, persistent. Declare the queue without arguments: the broker "
                "rejects a declaration that differs from the existing queue.",
                "messages": {"task": {"$ref": "#/components/messages/task"}},
                "bindings": {"amqp": _queue(QUEUE)},
            },
            "retry": {
                "address": f"{QUEUE}.retry.{{pause}}",
                "description": "Used by workers only. A message waits here and returns to the "
                "task queue when its delay has passed.",
                "parameters": {
                    "pause": {
                        "description": "The setting RETRY_DELAYS; one queue each.",
                        "enum": [TOPOLOGY.retry(d).rpartition(".")[2] for d in DELAYS],
                    }
                },
                "messages": {"waiting": {"$ref": "#/components/messages/waiting"}},
                "bindings": {"amqp": _queue(None)},
            },
            "dead": {
                "address": TOPOLOGY.dead,
                "description": "Messages that need an operator. Used by workers and their "
                "operators only.",
                "messages": {"deadLetter": {"$ref": "#/components/messages/deadLetter"}},
                "bindings": {"amqp": _queue(TOPOLOGY.dead)},
            },
        },
        "operations": {
            "receiveTask": {
                "action": "receive",
                "summary": "Train one style",
                "description": "A message is acknowledged after the backend was notified of the "
                "outcome. A message that repeats the `task_id` of a "
                "finished job is acknowledged and changes nothing.",
                "channel": {"$ref": "#/channels/tasks"},
                "messages": [{"$ref": "#/channels/tasks/messages/task"}],
                "bindings": {"amqp": {"ack": True, "bindingVersion": "0.3.0"}},
            },
            "retryLater": {
                "action": "send",
                "summary": "Try a task again later",
                "channel": {"$ref": "#/channels/retry"},
                "messages": [{"$ref": "#/channels/retry/messages/waiting"}],
            },
            "deadLetter": {
                "action": "send",
                "summary": "Move a message to the dead letters",
                "channel": {"$ref": "#/channels/dead"},
                "messages": [{"$ref": "#/channels/dead/messages/deadLetter"}],
            },
        },
        "components": {
            "messages": {
                "task": {
                    "name": "TaskMessage",
                    "title": "A task",
                    "summary": f"JSON in UTF-8, at most {MAX_MESSAGE_BYTES // 1024} KiB, no key "
                    "twice in one object.",
                    "contentType": "application/json",
                    "payload": reference("TaskMessage"),
                    "examples": [{"name": "task", "payload": EXAMPLE_TASK}],
                },
                "waiting": {
                    "name": "WaitingTask",
                    "title": "A task that waits for its retry",
                    "contentType": "application/json",
                    "headers": reference("WaitingHeaders"),
                    "payload": reference("TaskMessage"),
                },
                "deadLetter": {
                    "name": "DeadLetter",
                    "title": "A rejected message in its original form, with the reason",
                    "headers": reference("DeadHeaders"),
                    "payload": {"description": "Any message from the task queue."},
                },
            },
            "schemas": {**task_schemas(), **_header_schemas()},
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


def _header_schemas() -> dict[str, Schema]:
    """Schemas of the headers that workers add to a message's own headers."""
    common: Schema = {
        message_properties.RETRIES: {
            "type": "integer",
            "minimum": 0,
            "description": "Number of earlier retries. Waiting for another worker does not count, "
            "nor does waiting for a store or backend once the delay is the longest.",
        },
        message_properties.REASON: {
            "type": "string",
            "maxLength": message_properties.MAX_REASON,
            "description": "The reason, as text for an operator.",
        },
    }
    dead: Schema = {
        message_properties.SINCE: {"type": "string", "format": "date-time"},
        message_properties.WORKER: {
            "type": "string",
            "description": "Name of the worker that moved the message here.",
        },
        message_properties.DETAILS: {
            "type": "object",
            "maxProperties": message_properties.MAX_DETAILS,
            "additionalProperties": {"type": "string", "maxLength": message_properties.MAX_DETAIL},
            "description": "The reason in machine-readable form; of an invalid task: field, "
            "value and remedy.",
        },
    }
    return {
        "WaitingHeaders": {"type": "object", "required": [*common], "properties": common},
        "DeadHeaders": {
            "type": "object",
            "required": [*common, *dead],
            "properties": {**common, **dead},
        },
    }


def _queue(name: str | None) -> dict[str, Any]:
    named = {"name": name} if name is not None else {}
    queue = {**named, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"}
    return {"is": "queue", "queue": queue, "bindingVersion": "0.3.0"}

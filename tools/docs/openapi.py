"""OpenAPI document of the webhooks: the part of the backend that a worker calls."""

from __future__ import annotations

from typing import Any

from adapters.schemas.bodies import CompleteBody, FailedBody, ProgressBody
from entrypoints.cli import version
from tools.docs.schemas import reference, schemas_of

_DROPPED = "The call is dropped; the next one has newer figures."
_RETRIED = "The worker repeats the call with growing pauses until it succeeds."
_NOT_REPEATED = "The call is not repeated: the message goes to the dead letters with this reason."

_FIGURES = {"current_epoch": 50, "total_epochs": 100, "progress_percent": 50}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "ProgressBody": {"style_id": 10, "progress": {**_FIGURES, "estimated_seconds": 900}},
    "CompleteBody": {
        "style_id": 10,
        "model_path": "s3://bucket/models/style_10.safetensors",
        "training_metric": {
            "loss": 0.05,
            "epochs": 100,
            "steps": 1500,
            "best_epoch": 80,
            "delivered_epoch": 80,
            "measured_loss": 0.05,
            "base_loss": 0.12,
            "task_id": "550e8400-e29b-41d4-a716-446655440000",
            "sha256": "ab" * 32,
        },
    },
    "FailedBody": {
        "style_id": 10,
        "error_message": "Insufficient training data quality",
        "error_code": "LOW_QUALITY_DATA",
    },
}


def openapi() -> dict[str, Any]:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Style trainer: webhooks",
            "version": version(),
            "description": "The calls that a worker makes to the backend. The backend is not "
            "idempotent: it notifies the artist of every `complete` and `failed` call. "
            "Before a worker repeats `complete`, it reads `GET /api/styles/<style_id>/` without "
            "a token: if `training_metric` has this task's `task_id` and `sha256`, the call "
            "has arrived. Every repetition carries the same `Idempotency-Key`.",
        },
        "servers": [
            {
                "url": "{backend}",
                "description": "HTTPS, except to a loopback host or with BACKEND_ALLOW_HTTP.",
                "variables": {
                    "backend": {
                        "default": "https://stylelicense.com",
                        "description": "The setting BACKEND_API_URL.",
                    }
                },
            }
        ],
        "security": [{"token": []}],
        "paths": {
            "/api/webhooks/training/progress": {
                "patch": _call(
                    "progress",
                    "Progress of a job",
                    "Every PROGRESS_EVERY seconds while training. A call that fails is dropped, "
                    "because the next one has newer figures; after three 404 in a row the "
                    "training stops. None follows `complete` or `failed`. "
                    "`python -m entrypoints.worker --check` sends `{}` here, which names no "
                    "style, and expects 400: the backend sends it only after accepting token and "
                    "source header.",
                    "ProgressBody",
                )
            },
            "/api/webhooks/training/complete": {
                "post": _call(
                    "complete", "The style is ready", "The job's last call.", "CompleteBody"
                )
            },
            "/api/webhooks/training/failed": {
                "post": _call("failed", "The job has failed", "The job's last call.", "FailedBody")
            },
        },
        "components": {
            "schemas": {
                **schemas_of([ProgressBody, CompleteBody, FailedBody]),
                "Accepted": {
                    "type": "object",
                    "required": ["success"],
                    "properties": {"success": {"type": "boolean", "enum": [True]}},
                },
            },
            "parameters": {
                "source": {
                    "name": "X-Request-Source",
                    "in": "header",
                    "required": True,
                    # Not `const`: client generators omit calls with such a header.
                    "schema": {"type": "string", "enum": ["training-server"]},
                },
                "agent": {
                    "name": "User-Agent",
                    "in": "header",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^style-trainer/"},
                },
                "key": {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "required": True,
                    "description": "The same for every repetition of one call: "
                    "`<task_id>:complete` or `<task_id>:failed`; of an invalid task without a job "
                    "`invalid-<hash of the message>:failed`.",
                    "schema": {"type": "string"},
                },
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The setting INTERNAL_API_TOKEN.",
                }
            },
        },
    }


def _call(operation: str, summary: str, description: str, body: str) -> dict[str, Any]:
    final = body != "ProgressBody"
    parameters = ["source", "agent", *(["key"] if final else [])]
    return {
        "operationId": operation,
        "summary": summary,
        "description": description,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in parameters],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": reference(body), "example": _EXAMPLES[body]}
            },
        },
        "responses": {
            status: {"description": text, **(_taken() if status == "200" else {})}
            for status, text in _answers(final=final).items()
        },
    }


def _answers(*, final: bool) -> dict[str, str]:
    rejected, retried = (_NOT_REPEATED, _RETRIED) if final else (_DROPPED, _DROPPED)
    waits = " It waits at least as long as `Retry-After` says." if final else ""
    return {
        "200": "Accepted. With any other body the call counts as rejected.",
        "3XX": f"The worker follows no redirects, because they would get its token. {rejected}",
        "400": f"A field is missing. {rejected}",
        "401": f"The token is wrong. {rejected}",
        "403": f"`X-Request-Source` is missing or wrong. {rejected}",
        "404": f"The style is gone. {rejected}",
        "408": f"The request took too long. {retried}",
        "429": f"Too many calls. {retried}{waits}",
        "5XX": f"The backend is down or misconfigured. {retried}",
    }


def _taken() -> dict[str, Any]:
    schema = {"schema": reference("Accepted"), "example": {"success": True}}
    return {"content": {"application/json": schema}}

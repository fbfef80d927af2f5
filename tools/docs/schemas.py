"""JSON schemas of messages and bodies, from the pydantic models and the parameters' limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from adapters.schemas.task import TaskMessage
from domain.limits import Boolean, BoundedText, Choice, FloatRange, IntRange, Limit, Prompts
from domain.parameters import (
    ADAMW_LEARNING_RATE,
    LEARNING_RATES,
    LIMITS,
    MAY_BE_NONE,
    OptimizerName,
    TrainingParameters,
)
from tools.docs.parameter_docs import meanings

Schema = dict[str, Any]
PARAMETERS = "TrainingParameters"


def reference(name: str) -> Schema:
    """Reference to a shared schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def schemas_of(models: Sequence[type[BaseModel]]) -> dict[str, Schema]:
    """Schemas of the models and of their nested models, by name."""
    found: dict[str, Schema] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return {name: _tidied(schema) for name, schema in found.items()}


def task_schemas() -> dict[str, Schema]:
    """Schemas of the task message, with each parameter, which the model keeps as a mapping."""
    schemas = schemas_of([TaskMessage])
    requested = schemas["TaskData"]["properties"]["parameters"]
    requested["anyOf"] = [reference(PARAMETERS), {"type": "null"}]
    schemas[PARAMETERS] = parameters_schema()
    return schemas


def parameters_schema() -> Schema:
    """Schema of a task's training parameters. Null has the same meaning as a missing value."""
    defaults = TypeAdapter(TrainingParameters).json_schema()["properties"]
    texts, rate = meanings(), schema_of_limit(ADAMW_LEARNING_RATE)
    properties = {}
    for name, limit in LIMITS.items():
        accepted = _or_null(schema_of_limit(limit))
        if name not in MAY_BE_NONE and "default" in defaults[name]:
            accepted["default"] = defaults[name]["default"]
        properties[name] = {"description": texts[name].replace("None", "null"), **accepted}
    return {
        "type": "object",
        "description": "Training parameters. The default of `epochs` depends on the number of "
        "images: 700 - 20 n, at least 100 and at most 500. Without `resolution` it is the base "
        "model's own. Unknown keys are ignored with a warning.",
        "properties": properties,
        "if": {
            "required": ["optimizer"],
            "properties": {"optimizer": {"const": str(OptimizerName.PRODIGY)}},
        },
        "else": {"properties": dict.fromkeys(LEARNING_RATES, _or_null(rate))},
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def schema_of_limit(limit: Limit) -> Schema:
    """Schema of the values that a limit accepts. A string must have a non-blank character."""
    match limit:
        case IntRange(low, high, multiple_of):
            step = {"multipleOf": multiple_of} if multiple_of > 1 else {}
            return {"type": "integer", "minimum": low, "maximum": high, **step}
        case FloatRange(low, high, above_low):
            return {
                "type": "number",
                "exclusiveMinimum" if above_low else "minimum": low,
                "maximum": high,
            }
        case BoundedText(longest):
            return {"type": "string", "maxLength": longest, "pattern": r"\S"}
        case Prompts(most, each):
            return {"type": "array", "maxItems": most, "items": schema_of_limit(each)}
        case Choice(names):
            return {"type": "string", "enum": [str(name) for name in names]}
        case Boolean():
            return {"type": "boolean"}
    raise TypeError(f"no schema for {limit!r}")


def _tidied(schema: Schema) -> Schema:
    """Remove titles that repeat a name, and put each description on one line."""
    for name, value in list(schema.items()):
        if name == "title" and isinstance(value, str):
            del schema[name]
        elif name == "description" and isinstance(value, str):
            schema[name] = " ".join(value.split())
        elif isinstance(value, dict):
            _tidied(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    _tidied(item)
    return schema

"""The OpenAPI document of a server: what its models take and give, with made-up examples and no training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainrule.serving.served import Served

Schema = dict[str, Any]

_NUMBER: Schema = {"type": "number"}
_TEXT: Schema = {"type": "string"}
_SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_EXAMPLES = {
    "text": "The delivery was late, but everything works.",
    "text_a": "Where is my parcel?",
    "text_b": "When will my order arrive?",
    "question": "Where was the meeting?",
    "context": "The meeting was in Oslo and lasted two hours.",
    "query": "cold drinks",
    "item": "Lemonade with ice and mint.",
    "source": "The meeting was in Oslo. It lasted two hours, and nothing was decided.",
    "image": "data:image/png;base64,iVBORw0KGgo…",
}


def completed(document: Schema, models: Mapping[str, Served]) -> Schema:
    """FastAPI's document with what its models take and give in place of what any model might."""
    schemas = document["components"]["schemas"]
    names = list(models)
    for name, served in models.items():
        schemas[f"Prediction of {name}"] = prediction_of(served)
    each = [{"$ref": f"#/components/schemas/Prediction of {name}"} for name in names]
    schemas["Predictions"] = {
        "type": "object",
        "required": ["id", "model", "predictions"],
        "properties": {
            "id": _TEXT,
            "model": {"type": "string", "enum": names},
            "predictions": {"type": "array", "items": each[0] if len(each) == 1 else {"anyOf": each}},
        },
    }
    schemas["Error"] = _error()
    schemas["Predict"]["properties"]["model"] = {"type": "string", "enum": names}
    if len(models) > 1:
        schemas["Predict"]["required"] = ["inputs", "model"]
    examples = {
        name: {"summary": served.task, "value": {"inputs": [example_of(served)], "model": name}}
        for name, served in models.items()
    }
    operation = document["paths"]["/v1/predict"]["post"]
    operation["requestBody"]["content"]["application/json"]["examples"] = examples
    answer = {"$ref": "#/components/schemas/Predictions"}
    operation["responses"]["200"]["content"]["application/json"]["schema"] = answer
    for path in document["paths"].values():
        for method in path.values():
            method["responses"].pop("422", None)
            error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
            method["responses"]["default"] = {"description": "Why there is no answer.", "content": error}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def prediction_of(served: Served) -> Schema:
    """What is said of a row."""
    labels = {"type": "string", "enum": list(served.predictor.artifact.manifest.labels)}
    cut = {"type": "boolean", "description": "True where the row was longer than the model reads."}
    said = _SAID[served.kind](labels) if not served.predictor.task.embeds else {"vector": _list(_NUMBER)}
    properties = {"id": _TEXT, **said, "cut": cut}
    return {"type": "object", "required": ["id", *_always(said)], "properties": properties}


def _always(said: Schema) -> list[str]:
    return [name for name in said if name not in ("tags", "scores")]


def _class(labels: Schema) -> Schema:
    return {"label": labels, "score": _SHARE, "scores": _scores(labels)}


def _classes(labels: Schema) -> Schema:
    return {"label": _list(labels), "scores": _scores(labels)}


def _scores(labels: Schema) -> Schema:
    return {"type": "object", "properties": dict.fromkeys(labels["enum"], _SHARE), "additionalProperties": False}


def _spans(labels: Schema) -> Schema:
    place = {"type": "integer", "minimum": 0}
    entity = {"start": place, "end": place, "label": labels, "text": _TEXT, "score": _SHARE}
    return {"entities": _list({"type": "object", "required": list(entity), "properties": entity}), "tags": _list(_TEXT)}


def _written(labels: Schema) -> Schema:
    return {"text": _TEXT, "finished": {"type": "boolean"}}


_SAID = {
    "class": _class,
    "classes": _classes,
    "number": lambda labels: {"score": _NUMBER},
    "spans": _spans,
    "answers": lambda labels: {"answer": _TEXT, "start": {"type": ["integer", "null"]}, "score": _SHARE},
    "relevances": lambda labels: {"score": _NUMBER, "rank": {"type": "integer", "minimum": 1}},
    "reply": _written,
    "preference": _written,
    "written": _written,
}


def example_of(served: Served) -> Any:
    """A made-up row."""
    task, inputs = served.predictor.task, served.predictor.artifact.manifest.inputs
    if served.kind == "relevances":
        inputs = ("query", "item")
    if task.embeds or served.chats or served.kind in ("spans", "written") or len(inputs) == 1:
        return _EXAMPLES["image" if task.sees else "source" if served.kind == "written" else "text"]
    return {name: _EXAMPLES.get(name, _EXAMPLES["text"]) for name in inputs}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _error() -> Schema:
    maybe = {"type": ["string", "null"]}
    inside = {"message": _TEXT, "type": _TEXT, "param": maybe, "code": _TEXT}
    error = {"type": "object", "required": list(inside), "properties": inside}
    return {"type": "object", "required": ["error"], "properties": {"error": error}}

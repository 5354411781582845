"""The OpenAPI document of a server: what its models take and give, with made-up examples and no training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainrule.serving.responses import NUMBER, TEXT, Schema, array_of, describe, object_of
from chainrule.serving.served import Served

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
    each = []
    for place, (name, served) in enumerate(models.items(), start=1):  # names of models may have any letters
        schemas[f"Prediction{place}"] = prediction_of(served) | {"title": f"Prediction of {name}"}
        each.append({"$ref": f"#/components/schemas/Prediction{place}"})
    schemas["Predictions"] = {
        "type": "object",
        "required": ["id", "model", "predictions"],
        "properties": {
            "id": TEXT,
            "model": {"type": "string", "enum": names},
            "predictions": {"type": "array", "items": each[0] if len(each) == 1 else {"anyOf": each}},
        },
    }
    schemas["Predict"]["properties"]["model"] = {"type": "string", "enum": names}
    if len(models) > 1:
        schemas["Predict"]["required"] = ["inputs", "model"]
    examples = {
        name: {"summary": served.task, "value": {"inputs": [example_of(served)], "model": name}}
        for name, served in models.items()
    }
    operation = document["paths"]["/v1/predict"]["post"]
    operation["requestBody"]["content"]["application/json"]["examples"] = examples
    describe(document)
    answer = {"$ref": "#/components/schemas/Predictions"}
    operation["responses"]["200"]["content"]["application/json"]["schema"] = answer
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def prediction_of(served: Served) -> Schema:
    """What is said of a row."""
    labels = {"type": "string", "enum": list(served.predictor.artifact.manifest.labels)}
    cut = {"type": "boolean", "description": "True where the row was longer than the model reads."}
    said = _SAID[served.kind](labels) if not served.predictor.task.embeds else {"vector": array_of(NUMBER)}
    properties = {"id": TEXT, **said, "cut": cut}
    return {"type": "object", "required": ["id", *_always(said)], "properties": properties}


def _always(said: Schema) -> list[str]:
    return [name for name in said if name not in ("tags", "scores")]


def _class(labels: Schema) -> Schema:
    return {"label": labels, "score": _SHARE, "scores": _scores(labels)}


def _classes(labels: Schema) -> Schema:
    return {"label": array_of(labels), "scores": _scores(labels)}


def _scores(labels: Schema) -> Schema:
    return {"type": "object", "properties": dict.fromkeys(labels["enum"], _SHARE), "additionalProperties": False}


def _spans(labels: Schema) -> Schema:
    place = {"type": "integer", "minimum": 0}
    entity = object_of(start=place, end=place, label=labels, text=TEXT, score=_SHARE)
    return {"entities": array_of(entity), "tags": array_of(TEXT)}


def _written(labels: Schema) -> Schema:
    return {"text": TEXT, "finished": {"type": "boolean"}}


_SAID = {
    "class": _class,
    "classes": _classes,
    "number": lambda labels: {"score": NUMBER},
    "spans": _spans,
    "answers": lambda labels: {"answer": TEXT, "start": {"type": ["integer", "null"]}, "score": _SHARE},
    "relevances": lambda labels: {"score": NUMBER, "rank": {"type": "integer", "minimum": 1}},
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

"""The forms of what each path answers, for the OpenAPI document; those of predictions are in `forms`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]

NUMBER: Schema = {"type": "number"}
TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TRUTH: Schema = {"type": "boolean"}


def array_of(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def object_of(optional: Sequence[str] = (), **properties: Schema) -> Schema:
    """An object whose properties are all there but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def one_of(*values: str) -> Schema:
    """One of some words."""
    return {"type": "string", "enum": list(values)}


_USAGE = object_of(("completion_tokens",), prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_MAYBE = {"type": ["string", "null"]}
_MODEL = object_of(
    id=TEXT,
    object=one_of("model"),
    created=_COUNT,
    owned_by=TEXT,
    task=TEXT,
    labels=array_of(TEXT),
    max_length={"type": ["integer", "null"]},
    runtime=TEXT,
    weights_sha256=TEXT,
    in_memory=_TRUTH,
    bytes=_COUNT,
)
_ENDS = one_of("stop", "length")


def _written(form: str, said: Schema) -> Schema:
    choice = object_of(index=_COUNT, **said, logprobs={"type": "null"}, finish_reason=_ENDS)
    return object_of(id=TEXT, object=one_of(form), created=_COUNT, model=TEXT, choices=array_of(choice), usage=_USAGE)


_MESSAGE = object_of(role=one_of("assistant"), content=TEXT, refusal={"type": "null"})
_VECTOR: Schema = {"anyOf": [array_of(NUMBER), {"type": "string", "description": "float32, in base64"}]}
_EMBEDDING = object_of(object=one_of("embedding"), index=_COUNT, embedding=_VECTOR)
_RANKED = object_of(
    ("id", "cut"),
    index=_COUNT,
    id={"type": ["string", "integer"]},
    score=NUMBER,
    rank={"type": "integer", "minimum": 1},
    cut=_TRUTH,
)
FORMS: dict[tuple[str, str], Schema] = {
    ("post", "/v1/feedback"): object_of(id=TEXT, model=TEXT, predicted=array_of(TEXT), correct=_TRUTH, replaced=_TRUTH),
    ("post", "/v1/rank"): object_of(id=TEXT, model=TEXT, results=array_of(_RANKED)),
    ("post", "/v1/embeddings"): object_of(object=one_of("list"), data=array_of(_EMBEDDING), model=TEXT, usage=_USAGE),
    ("post", "/v1/chat/completions"): _written("chat.completion", {"message": _MESSAGE}),
    ("post", "/v1/completions"): _written("text_completion", {"text": TEXT}),
    ("get", "/v1/models"): object_of(object=one_of("list"), data=array_of(_MODEL)),
    ("get", "/v1/models/{name}"): _MODEL,
    ("get", "/healthz"): object_of(status=one_of("ok")),
    ("get", "/readyz"): object_of(status=one_of("ready", "not ready")),
}
STREAMS = ("/v1/chat/completions", "/v1/completions")


def describe(document: Schema) -> None:
    """Write into the document what each path answers, and what errors look like."""
    schemas = document["components"]["schemas"]
    inside = object_of(message=TEXT, type=TEXT, param=_MAYBE, code=TEXT)
    schemas["Error"] = object_of(error=inside)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            responses = operation["responses"]
            responses.pop("422", None)
            responses["default"] = {"description": "Why there is no answer.", "content": error}
            if (method, path) in FORMS:
                responses["200"]["content"] = {"application/json": {"schema": FORMS[method, path]}}
            if path in STREAMS:
                responses["200"]["content"]["text/event-stream"] = {"schema": object_of(data=TEXT)}
            if path == "/metrics":
                responses["200"]["content"] = {"text/plain": {"schema": TEXT}}
            if path == "/readyz":
                responses["503"] = {"description": "The models do not answer.", "content": responses["200"]["content"]}

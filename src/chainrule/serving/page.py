"""The page /docs: the OpenAPI document for a person, without a script and without anything from the network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

Schema = Mapping[str, Any]


def page_of(document: Schema) -> tuple[str, str]:
    """The page, and the Content-Security-Policy to send with it."""
    css = (files("chainrule.serving") / "templates" / "docs.css").read_text(encoding="utf-8")
    schemas = document["components"]["schemas"]
    text = (
        _templates()
        .get_template("docs.html")
        .render(
            css=Markup(css),
            about=document["info"],
            operations=list(_operations(document)),
            schemas={name: _shown(schema) for name, schema in schemas.items()},
        )
    )
    digest = base64.b64encode(hashlib.sha256(css.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return text.encode("utf-8", "backslashreplace").decode("utf-8"), policy


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("chainrule.serving", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _operations(document: Schema) -> Iterator[dict[str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            schema = _resolved(document, body.get("schema", {}))
            answer = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
            yield {
                "path": path,
                "method": method.upper(),
                "told": operation.get("description") or operation.get("summary", ""),
                "fields": list(_fields(document, schema)),
                "examples": {name: _shown(one["value"]) for name, one in body.get("examples", {}).items()},
                "answer": _words(answer.get("schema", {})),
            }


def _fields(document: Schema, schema: Schema) -> Iterator[dict[str, Any]]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        whole = {**_resolved(document, field), **field}
        yield {
            "name": name,
            "required": name in required,
            "type": _words(field),
            "told": whole.get("description", ""),
        }


def _resolved(document: Schema, schema: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    found: Schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def _words(schema: Schema) -> str:
    """A type in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        more = " | …" if len(values) > 12 else ""
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in values[:12]) + more
    for together in ("anyOf", "oneOf"):
        if together in schema:
            return " | ".join(dict.fromkeys(_words(one) for one in schema[together]))
    kind = schema.get("type", "")
    if kind == "array":
        return f"[{_words(schema.get('items', {}))}]"
    if kind == "object" and "properties" in schema:
        return "{" + ", ".join(f"{name}: {_words(field)}" for name, field in schema["properties"].items()) + "}"
    bounds = [
        f"{sign} {schema[key]}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in schema
    ]
    return " ".join([" | ".join(kind) if isinstance(kind, list) else str(kind), *bounds]).strip()


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)

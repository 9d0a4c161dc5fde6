"""The OpenAPI document, from the tables that the server itself reads by. Knows rows and schemas."""

import re
from collections.abc import Iterable
from typing import Any

from ... import __version__
from .fields import schema
from .page import PATHS
from .routes import Row
from .schemas import SCHEMAS, ref
from .sessions import FILE

_QUERY: dict[str, list[dict[str, Any]]] = {
    "/v1/conversations/{id}/items": [
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
        {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
        {"name": "after", "in": "query", "schema": {"type": "string"}},
    ]
}
_HEADERS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("POST", "/v1/chat/completions"): [{"name": "x-session-id", "in": "header", "schema": {"type": "string"}}],
    ("PUT", "/v1/sessions/{id}/file"): [{"name": "if-match", "in": "header", "schema": {"type": "string"}}],
}


def document(rows: Iterable[Row]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lm2 serve", "version": __version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _operation(row: Row) -> dict[str, Any]:
    summary = " ".join((row.endpoint.__doc__ or "").split()).partition(". ")[0].rstrip(".")
    out: dict[str, Any] = {"operationId": f"{row.method.lower()}{re.sub(r'[^a-z0-9]+', '_', row.path)}", "summary": summary}
    names = re.findall(r"\{(\w+)\}", row.path)
    given: list[dict[str, Any]] = [{"name": n, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for n in names]
    given += (_QUERY.get(row.path, []) if row.method == "GET" else []) + _HEADERS.get((row.method, row.path), [])
    if given:
        out["parameters"] = given
    if row.reads is not None:
        needed = any(field.need for field in row.reads.values())
        out["requestBody"] = {"required": needed, "content": {"application/json": {"schema": schema(row.reads)}}}
    if row.method == "PUT":
        out["requestBody"] = {"required": True, "content": {FILE: {"schema": {"type": "string", "format": "binary"}}}}
    out["responses"] = {str(row.status): {"description": "done", "content": _content(row)}, "default": _ERROR}
    if row.path in PATHS:
        out["security"] = []
    if row.gives == "Health":
        out["responses"]["503"] = {"description": "not ready", "content": _content(row)}
        out["security"] = []
    return out


_ERROR: dict[str, Any] = {"description": "refused", "content": {"application/json": {"schema": ref("Error")}}}


def _content(row: Row) -> dict[str, Any]:
    if row.gives.startswith("text/"):
        return {row.gives: {"schema": {"type": "string"}}}
    if row.gives == FILE:
        return {row.gives: {"schema": {"type": "string", "format": "binary"}}}
    found: dict[str, Any] = {"application/json": {"schema": {"type": "object"} if "/" in row.gives else ref(row.gives)}}
    return found | ({"text/event-stream": {}} if row.stream else {})

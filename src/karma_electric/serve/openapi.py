"""The OpenAPI description. Bodies are read by hand (see bodies.py), so it is told here what they are."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_REF = "#/components/schemas/{model}"
_bodies: dict[str, type[BaseModel]] = {}
_REFUSALS = {
    "400": "A parameter is wrong, missing, unknown or not supported",
    "401": "No API key, or a wrong one",
    "403": "From a web page that may not call",
    "404": "Another model, or no such address",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "421": "The Host header is not a name of this machine",
    "429": "Too many answers are under way; Retry-After says when to ask again",
    "500": "A bug",
    "503": "About to stop, or the engine broke",
}


def body_of(model: type[BaseModel], *, streams: str | None = None) -> dict[str, Any]:
    """Say that an endpoint reads this body, as `openapi_extra`; and what its answer is when it is streamed."""
    _bodies[model.__name__] = model
    schema = {"$ref": _REF.format(model=model.__name__)}
    said: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    if streams is not None:
        # without a type: some readers take the schema for that of an event, others for that of the whole text
        told = {"description": "with `stream`: a JSON object per event or line"}
        said["responses"] = {"200": {"content": {streams: {"schema": told}}}}
    return said


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an app: its routes, our bodies, and the refusals that any of them may answer with."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        for name, model in _bodies.items():
            schema = model.model_json_schema(ref_template=_REF)
            schemas |= schema.pop("$defs", {})
            schemas[name] = schema
        schemas["Error"] = {
            "type": "object",
            "description": "OpenAI's form; below /api Ollama's, where error is the message",
            "required": ["error"],
            "properties": {"error": {"anyOf": [{"type": "object"}, {"type": "string"}]}},
        }
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)  # checked by hand: 400
                for status, text in _REFUSALS.items():
                    operation["responses"].setdefault(status, {"description": text, "content": content})
        app.openapi_schema = found
    return app.openapi_schema

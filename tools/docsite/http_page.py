"""Reference of the HTTP API, from the OpenAPI description that the application itself gives. No server, no page."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from docsite.markdown import code, fence, plain, prose, table

FACTORY = "karma_electric.serve.app"


def openapi() -> dict[str, Any] | None:
    """What `create_app` describes, or None where this version has no server."""
    if importlib.util.find_spec("karma_electric.serve") is None or importlib.util.find_spec(FACTORY) is None:
        return None
    from karma_electric.models.engines.live_scripted import LiveScripted
    from karma_electric.serve.app import create_app
    from karma_electric.serve.settings import Served, ServeSettings

    settings = ServeSettings(Served("my-model"), runs=Path())  # with the endpoints of `karma serve --runs`
    described: dict[str, Any] = create_app(LiveScripted(["..."]), settings).openapi()
    return described


def pages() -> dict[str, str]:
    """Path below reference/ -> Markdown; empty where there is no server."""
    described = openapi()
    return {} if described is None else {"http.md": render(described)}


def render(described: dict[str, Any]) -> str:
    """An OpenAPI description as Markdown."""
    text = "# HTTP API\n\nRead off the application of this version; a running server gives it at `/openapi.json`.\n\n"
    paths = sorted(described.get("paths", {}).items())
    everywhere = common(operation for _, methods in paths for operation in methods.values())
    if everywhere:
        text += "## Errors\n\nOf every endpoint.\n\n" + _answers(everywhere)
    for path, methods in paths:
        for method, operation in methods.items():
            text += f"## {method.upper()} {path}\n\n" + _operation(operation, everywhere)
    schemas = described.get("components", {}).get("schemas", {})
    if schemas:
        text += "## Bodies\n\n"
        for name, schema in sorted(schemas.items()):
            text += f"### {name}\n\n" + _prose(schema.get("description", "")) + _fields(schema)
    return text


def common(operations: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Status -> answer, of those errors that all operations of an application have alike."""
    all_answers = [operation.get("responses", {}) for operation in operations]
    if len(all_answers) < 2:
        return {}
    first, *others = all_answers
    return {
        status: answer
        for status, answer in first.items()
        if status.startswith(("4", "5")) and all(other.get(status) == answer for other in others)
    }


def _answers(answers: dict[str, Any]) -> str:
    rows = [
        (status, plain(_content(answer)), plain(answer.get("description", ""))) for status, answer in answers.items()
    ]
    return table(["Status", "Gives", "Meaning"], rows) + "\n"


def _operation(operation: dict[str, Any], everywhere: dict[str, Any]) -> str:
    text = _prose(operation.get("description") or operation.get("summary", ""))
    parameters = operation.get("parameters", [])
    if parameters:
        rows = [
            (code(p["name"]), p["in"], plain(type_of(p.get("schema", {}))), plain(p.get("description", "")))
            for p in parameters
        ]
        text += table(["Parameter", "In", "Type", "Meaning"], rows) + "\n"
    body = _content(operation.get("requestBody", {}))
    text += f"Takes {plain(body)}.\n\n" if body else ""
    own = {status: answer for status, answer in operation.get("responses", {}).items() if status not in everywhere}
    return text + _answers(own)


def _content(holder: dict[str, Any]) -> str:
    return " or ".join(
        f"{type_of(c.get('schema', {}))} ({kind})" if c.get("schema") else kind
        for kind, c in holder.get("content", {}).items()
    )


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", []))
    rows = list(_field_rows(schema.get("properties", {}), required))
    return table(["Field", "Type", "Default", "Meaning"], rows) + "\n" if rows else fence(type_of(schema))


def _field_rows(properties: dict[str, Any], required: set[str]) -> Iterator[tuple[str, str, str, str]]:
    for name, schema in properties.items():
        default = "required" if name in required else code(schema["default"]) if "default" in schema else ""
        yield code(name), plain(type_of(schema)), default, plain(schema.get("description", ""))


def type_of(schema: dict[str, Any]) -> str:
    """A schema's type in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(type_of(each) for each in schema[key]))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "const" in schema:
        return repr(schema["const"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    limits = [f"{word} {schema[key]}" for key, word in _LIMITS.items() if key in schema]
    return ", ".join([kind, *limits])


_LIMITS = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}


def _prose(text: str) -> str:
    return f"{prose(text.strip())}\n" if text.strip() else ""

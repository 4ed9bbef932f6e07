"""Request bodies: read within limits, parsed strictly, checked against a model, with errors a person can act on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import parse_json
from karma_electric.serve.errors import ClientGone, HttpError
from karma_electric.serve.settings import Limits

DEEPEST = 32  # brackets within brackets; no parameter needs ten
Checked = TypeVar("Checked", bound="Body")


class Body(BaseModel):
    """A request body: types are not guessed at, and unknown parameters are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class Foreign:
    """Parameters of the original API that are not served here.

    Attributes:
        ignored: those that change nothing about the answer.
        neutral: parameter -> values that ask for nothing; any other value would change the answer, and is refused.
    """

    ignored: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]]

    def sift(self, data: dict[str, Any], where: str = "") -> tuple[dict[str, Any], list[str]]:
        """What is left for our own model, and what was ignored.

        Args:
            data: parameters as they came.
            where: what stands before their names in errors.

        Raises:
            HttpError: one that is not supported was asked for.
        """
        kept, ignored = {}, []
        for name, value in data.items():
            if name in self.ignored:
                ignored.append(name)
            elif name not in self.neutral:
                kept[name] = value
            elif not any(_same(value, neutral) for neutral in self.neutral[name]):
                raise HttpError(
                    400,
                    f"{where}{name} is {shown(value)}; it is not supported and would change the answer.",
                    f"Leave it out{_or_neutral(self.neutral[name])}.",
                    param=f"{where}{name}",
                    code="unsupported_parameter",
                )
        return kept, ignored


def _same(one: Any, other: Any) -> bool:
    """Equal, and not as 0 and false are."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _or_neutral(values: Sequence[Any]) -> str:
    given = [shown(value) for value in values if value is not None]
    return f", or give {' or '.join(given)}" if given else ""


def shown(value: Any) -> str:
    """A value as JSON, short."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."


async def read_object(request: Request, limits: Limits, *, any_type: bool = False) -> dict[str, Any]:
    """The JSON object that is the body of a request.

    Args:
        request: the request.
        limits: of length and time.
        any_type: take it whatever its Content-Type says, as Ollama does (curl without -H says it is a form).

    Raises:
        HttpError: too large, too slow, no JSON, no object.
        ClientGone: the client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not any_type and kind != "application/json" and not kind.endswith("+json"):
        raise HttpError(
            415,
            f"Content-Type is {shown(kind)}, expected application/json.",
            "Set it: -H 'Content-Type: application/json'",
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HttpError(415, f"Content-Encoding is {shown(encoding)}, expected none.", "Send the JSON as it is.")
    raw = await _read(request, limits)
    if not raw.strip():
        raise HttpError(400, "The body is empty, expected a JSON object.", 'At least {"model": ...}.')
    try:
        value = parse_json(raw, "The body")
    except DataError as error:
        raise HttpError(400, error.message, "Send one JSON object, as UTF-8.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise HttpError(400, f"The body is {shown(value)}, expected a JSON object.", 'At least {"model": ...}.')
    if _depth(value) > DEEPEST:
        raise HttpError(400, f"The body has more than {DEEPEST} brackets within each other.", "Make it flatter.")
    return value


async def _read(request: Request, limits: Limits) -> bytes:
    too_large = HttpError(
        413,
        f"The body is longer than the {limits.body_bytes} bytes there may be.",
        "Shorten the conversation (karma serve --max-body changes the limit).",
        headers={"Connection": "close"},
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise too_large
    chunks, length = [], 0
    try:
        with anyio.fail_after(limits.body_s):
            async for chunk in request.stream():
                length += len(chunk)
                if length > limits.body_bytes:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise HttpError(
            408,
            f"The body did not arrive within {limits.body_s:g} s.",
            "Send it again.",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ClientGone from None
    return b"".join(chunks)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= DEEPEST:
        inner = [v for v in level if isinstance(v, (dict, list))]
        level = [child for v in inner for child in (v.values() if isinstance(v, dict) else v)]
        depth += bool(inner)
    return depth


def checked(model: type[Checked], data: Mapping[str, Any], where: str = "") -> Checked:
    """The parameters as a model.

    Raises:
        HttpError: naming the first that is wrong.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as invalid:
        problem = _most_telling(invalid.errors(include_url=False, include_context=False))
    names = [part for part in problem["loc"] if isinstance(part, int) or part in _names_below(model)]
    path = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names).lstrip(".")
    last = problem["loc"][-1] if problem["loc"] else ""
    if problem["type"] == "missing":
        raise HttpError(400, f"{path or last} is missing.", "It is required.", param=path, code="missing_parameter")
    if problem["type"] == "extra_forbidden":
        param = f"{path}.{last}" if path != where else f"{where}{last}"
        known = list(model.model_fields)
        near = difflib.get_close_matches(str(last), known, n=1)
        hint = (
            "Leave it out." if path != where else f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
        )
        raise HttpError(400, f"{shown(param)} is no parameter here.", hint, param=param[:80], code="unknown_parameter")
    message = problem["msg"].removeprefix("Value error, ")
    raise HttpError(
        400,
        f"{path} is {shown(problem['input'])}: {message[:1].lower()}{message[1:]}.",
        param=path,
        code="invalid_value",
    )


def _most_telling(problems: list[Any]) -> Any:
    """The first problem; where a parameter may be of several types, the one of the type that was given."""
    same = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    return next((problem for problem in same if not problem["type"].endswith("_type")), same[0])


def _names_below(model: type[BaseModel]) -> set[str]:
    """Parameter names of a model and of those inside it: pydantic's locations hold names of types as well."""
    names = set(model.model_fields)
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            for inner in (kind, *getattr(kind, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    names |= set(inner.model_fields)
    return names

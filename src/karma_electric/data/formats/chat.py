"""Conversations as lists of turns: OpenAI/ChatML `messages`, ShareGPT `conversations`, and the original's exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation, parse_conversation, system, text_of
from karma_electric.data.candidate import Candidate
from karma_electric.data.formats.envelope import form_of, require_object, unwrap, wrap

MESSAGES, SHAREGPT, ORIGINAL = "messages", "sharegpt", "original"

_PLAIN = {"system": "system", "user": "user", "assistant": "assistant"}
_NAMES = {**_PLAIN, "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}
_SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
_PAIRS = {"role": ("role", "content"), "from": ("from", "value")}
_ORIGINAL_KEYS = ("id", "source", "category")


def read_messages(item: object, where: str) -> Candidate:
    """A candidate from `{"messages": [{"role", "content"}, ...]}`; content may be OpenAI's list with one part of text.

    Raises:
        DataError: what is wrong, with `where`.
    """
    return _read(require_object(item, where), MESSAGES, "messages", where)


def read_sharegpt(item: object, where: str) -> Candidate:
    """A candidate from `{"conversations": [...]}`, turns with `from`/`value` or `role`/`content`.

    Raises:
        DataError: what is wrong, with `where`.
    """
    return _read(require_object(item, where), SHAREGPT, "conversations", where)


def read_original(item: object, where: str) -> Candidate:
    """A candidate from an export of the original: `{"id", "source", "category", "conversations"}`.

    Its categories are not ours: one that we do not know stays in `extra`.

    Raises:
        DataError: what is wrong, with `where`.
    """
    record = require_object(item, where)
    for key in _ORIGINAL_KEYS:
        if key not in record:
            raise DataError(
                f"{where}: {key!r} is missing.",
                f"The original's exports have {', '.join(_ORIGINAL_KEYS)} and conversations; else: --format sharegpt",
            )
    return _read(record, ORIGINAL, "conversations", where)


def write_messages(candidate: Candidate) -> dict[str, Any]:
    """The record of a candidate with `messages`, the system prompt first."""
    return _write(candidate, MESSAGES, "messages")


def write_sharegpt(candidate: Candidate) -> dict[str, Any]:
    """The record of a candidate with `conversations` from human and gpt, unless it came with other names."""
    return _write(candidate, SHAREGPT, "conversations")


def write_original(candidate: Candidate) -> dict[str, Any]:
    """The record of a candidate as the original exports it."""
    record = _write(candidate, ORIGINAL, "conversations")
    rest = {"id": candidate.id, "source": candidate.source, "category": candidate.category}
    return record if all(key in record for key in rest) else {**rest, **record}


def _style(format: str) -> str:
    return "from" if format == SHAREGPT else "role"


def _canonical(style: str) -> Mapping[str, str]:
    return _SHAREGPT_NAMES if style == "from" else _PLAIN


def _read(record: Mapping[str, Any], format: str, key: str, where: str) -> Candidate:
    items = record.get(key)
    if not isinstance(items, list) or not items:
        found = "missing" if key not in record else "empty" if items == [] else f"of type {type(items).__name__}"
        raise DataError(f"{where}: {key!r} is {found}, expected a list of turns.")
    style = _style(format)
    if format != MESSAGES and isinstance(items[0], Mapping):
        style = "from" if "from" in items[0] else "role"
    role_key, text_key = _PAIRS[style]
    known = _PLAIN if format == MESSAGES else _NAMES
    turns, names, rests, parts = [], [], [], []
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise DataError(f"{where}: turn {number} is of type {type(item).__name__}, expected an object.")
        name, text = item.get(role_key), item.get(text_key)
        if not isinstance(name, str) or name not in known:
            found = repr(name) if role_key in item else "missing"
            raise DataError(f"{where}: turn {number} has {role_key} {found}, expected one of {', '.join(known)}.")
        if isinstance(text, list) and format == MESSAGES:
            text = text_of(text, f"{where}: turn {number} ({name})")
        if not isinstance(text, str):
            found = f"of type {type(text).__name__}" if text_key in item else "missing"
            raise DataError(f"{where}: turn {number} ({name}): {text_key!r} is {found}, expected text.")
        parts.append(text is not item.get(text_key))
        turns.append({"role": known[name], "content": text})
        names.append(name)
        rests.append({k: v for k, v in item.items() if k not in (role_key, text_key)})
    messages = parse_conversation(turns, where)
    prompt, body = None, {key}
    form: dict[str, Any] = {}
    if messages[0].role == "system":
        prompt, messages = messages[0].content, messages[1:]
    elif isinstance(record.get("system"), str) and record["system"].strip():
        prompt, form["system"] = record["system"], "key"
        body.add("system")
    if style != _style(format):
        form["style"] = style
    if names != [_canonical(style)[turn["role"]] for turn in turns]:
        form["names"] = names
    if any(rests):
        form["turns"] = rests
    if any(parts):
        form["parts"] = parts
    return unwrap(record, format=format, body=body, messages=messages, system=prompt, form=form, where=where)


def _write(candidate: Candidate, format: str, key: str) -> dict[str, Any]:
    form = form_of(candidate, format)
    style = next((name for name in _PAIRS if name == form.get("style")), _style(format))
    role_key, text_key = _PAIRS[style]
    by_key = candidate.system is not None and form.get("system") == "key"
    turns: Conversation = list(candidate.messages)
    if candidate.system is not None and not by_key:
        turns.insert(0, system(candidate.system))
    names: list[str] = _list(form.get("names"), str)
    rests = [
        {k: v for k, v in rest.items() if k not in (role_key, text_key)} for rest in _list(form.get("turns"), dict)
    ]
    if [_NAMES.get(name) for name in names] != [turn.role for turn in turns]:  # the usual names, or edited since
        names = [_canonical(style)[turn.role] for turn in turns]
    if len(rests) != len(turns):
        rests = [{} for _ in turns]
    parts: list[bool] = _list(form.get("parts"), bool)
    if len(parts) != len(turns):
        parts = [False] * len(turns)
    contents = [
        [{"type": "text", "text": turn.content}] if in_parts else turn.content
        for turn, in_parts in zip(turns, parts, strict=True)
    ]
    body: dict[str, Any] = {
        key: [
            {role_key: name, text_key: content, **rest}
            for content, name, rest in zip(contents, names, rests, strict=True)
        ]
    }
    if by_key:
        body["system"] = candidate.system
    return wrap(candidate, format=format, body=body)


def _list(value: object, kind: type) -> list[Any]:
    return value if isinstance(value, list) and all(isinstance(item, kind) for item in value) else []

"""What the outer formats share: the keys around a conversation, and the form that gives a record back as it came.

A key that says something a candidate has a place for (a known category, a licence ...) is taken up; every other key is
kept in `extra`. The form remembers which keys there were, so that an export to the same format adds and drops nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from karma_electric.core.artifact import canonical_json, hash_text
from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation
from karma_electric.data.candidate import Candidate
from karma_electric.data.example import CATEGORIES, STATUSES, Analysis
from karma_electric.data.records import FORM

_PARTS = ("direct", "downstream", "inaction")
_DEFAULTS: dict[str, Any] = {
    "category": None,
    "tags": (),
    "analysis": None,
    "source": "unknown",
    "license": "unknown",
    "added_in": None,
    "status": "candidate",
}


def require_object(item: object, where: str) -> Mapping[str, Any]:
    """`item`, if it is a JSON object.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: found {type(item).__name__}, expected a JSON object.")
    if FORM in item:
        raise DataError(f"{where}: the key {FORM!r} is the workbench's own.", "Rename it.")
    return item


def content_id(record: Mapping[str, Any]) -> str:
    """A stable id for a record without one."""
    return hash_text(canonical_json(record))[:16]


def unwrap(
    record: Mapping[str, Any],
    *,
    format: str,
    body: Collection[str],
    messages: Conversation,
    system: str | None,
    form: Mapping[str, Any],
    where: str,
) -> Candidate:
    """A candidate from a record whose conversation has been read.

    Args:
        record: the whole record.
        format: name of its format.
        body: keys that the conversation was read from.
        messages: the conversation.
        system: its system prompt.
        form: what the format itself needs to write the conversation again.
        where: the place, for errors.

    Raises:
        DataError: an id that is no text.
    """
    id_ = record.get("id")
    remembered = {"format": format, "keys": list(record), **form}
    if isinstance(id_, int) and not isinstance(id_, bool):
        remembered["id"] = id_
    elif "id" in record and (not isinstance(id_, str) or not id_.strip()):
        raise DataError(f"{where}: 'id' is {id_!r}, expected text.", "Leave it out to have one made from the content.")
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in record.items():
        if key in body or key == "id":
            continue
        if key in _DEFAULTS and _fits(key, value):
            fields[key] = Analysis(**value) if key == "analysis" and value else tuple(value) if key == "tags" else value
        else:
            extra[key] = value
    return Candidate(
        id=str(id_) if "id" in record else content_id(record),
        messages=messages,
        system=system,
        **fields,
        extra={**extra, FORM: remembered},
    )


def form_of(candidate: Candidate, format: str) -> Mapping[str, Any]:
    """The form a candidate came in, if it came in this format; else an empty one."""
    form = candidate.extra.get(FORM)
    if not isinstance(form, Mapping) or form.get("format") != format or not isinstance(form.get("keys"), list):
        return {}
    return form


def wrap(candidate: Candidate, *, format: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a candidate: `body`, which holds the conversation, and the keys around it.

    Only what is known is written, and whatever the record had when it came in.
    """
    form = form_of(candidate, format)
    keys = list(form.get("keys", ["id"]))
    extra = {key: value for key, value in candidate.extra.items() if key != FORM}
    around: dict[str, Any] = {}
    if "id" in keys:
        number = form.get("id")
        around["id"] = number if str(number) == candidate.id else candidate.id
    for key, default in _DEFAULTS.items():
        value = getattr(candidate, key)
        if value != default or (key in keys and key not in extra):
            around[key] = _as_json(value)
    record = {**extra, **around, **body}
    order = [key for key in (*keys, *around, *body) if key in record]
    return {key: record[key] for key in (*dict.fromkeys(order), *(key for key in extra if key not in order))}


def _fits(key: str, value: object) -> bool:
    match key:
        case "category":
            return value is None or value in CATEGORIES
        case "status":
            return value in STATUSES
        case "tags":
            return isinstance(value, list) and all(isinstance(tag, str) and tag for tag in value)
        case "analysis":
            return value is None or (
                isinstance(value, Mapping)
                and set(value) == set(_PARTS)
                and all(isinstance(value[part], str) and value[part].strip() for part in _PARTS)
            )
        case "added_in":
            return value is None or (isinstance(value, str) and bool(value.strip()))
    return isinstance(value, str) and bool(value.strip())


def _as_json(value: Any) -> Any:
    if isinstance(value, Analysis):
        return vars(value).copy()
    return list(value) if isinstance(value, tuple) else value

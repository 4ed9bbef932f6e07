"""Our own format: the nine keys of a corpus example; a candidate may lack some, and may have `system` and `extra`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.messages import parse_conversation
from karma_electric.data.candidate import Candidate
from karma_electric.data.example import CATEGORIES, STATUSES, Analysis, parse_example
from karma_electric.data.formats.envelope import content_id
from karma_electric.data.records import as_record

NAME = "karma"
_PARTS = ("direct", "downstream", "inaction")
_TEXTS = ("source", "license", "status")
_KEYS = ("id", "category", "tags", "messages", "analysis", "source", "license", "added_in", "status", "system", "extra")


def is_ours(record: Mapping[str, Any]) -> bool:
    """Whether a record looks like ours, and not like one of another format with some of the same keys."""
    turns = record.get("messages")
    first = turns[0] if isinstance(turns, list) and turns else None
    return (
        {"messages", "analysis", "added_in"} <= set(record) <= set(_KEYS)
        and isinstance(first, Mapping)
        and first.get("role") != "system"
    )


def read(item: object, where: str) -> Candidate:
    """A candidate from a record of ours. All but `messages` may be missing or null.

    Raises:
        DataError: what is wrong, with `where`.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: found {type(item).__name__}, expected a JSON object.")
    if unknown := item.keys() - set(_KEYS):
        raise DataError(
            f"{where}: unknown key {sorted(unknown)[0]!r}.",
            f"Our format has the keys {', '.join(_KEYS)}: put others inside 'extra', or give --format messages.",
        )
    given = {key: value for key, value in item.items() if value is not None}
    for key in ("id", "added_in", *_TEXTS):
        if key in given and (not isinstance(given[key], str) or not given[key].strip()):
            raise DataError(f"{where}: {key!r} is {given[key]!r}, expected text.")
    for key, allowed in (("category", CATEGORIES), ("status", STATUSES)):
        if key in given and given[key] not in allowed:
            raise DataError(f"{where}: {key} {given[key]!r} is unknown, expected one of {', '.join(allowed)}.")
    tags = given.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        raise DataError(f"{where}: 'tags' is {tags!r}, expected a list of words.")
    if not isinstance(given.get("system", ""), str):
        raise DataError(f"{where}: 'system' is of type {type(given['system']).__name__}, expected text.")
    if not isinstance(given.get("extra", {}), Mapping):
        raise DataError(f"{where}: 'extra' is of type {type(given['extra']).__name__}, expected a JSON object.")
    messages = parse_conversation(item.get("messages"), where)
    if messages[0].role == "system":
        raise DataError(
            f"{where}: a system prompt is among the turns.", "Move it to the key 'system', or give --format messages."
        )
    return Candidate(
        id=given.get("id") or content_id(item),
        messages=messages,
        system=given.get("system"),
        category=given.get("category"),
        tags=tuple(tags),
        analysis=_read_analysis(given.get("analysis"), where),
        added_in=given.get("added_in"),
        extra=given.get("extra", {}),
        **{key: given[key] for key in _TEXTS if key in given},
    )


def read_complete(item: object, where: str) -> Candidate:
    """A candidate from a line of a corpus, which must be a whole example.

    Raises:
        DataError: what is wrong, with `where`.
    """
    return Candidate.from_example(parse_example(item, where))


def write(candidate: Candidate) -> dict[str, Any]:
    """The record of a candidate, keys in the order of the corpus; `system` and `extra` only where there are any."""
    record = as_record(candidate)
    system, extra = record.pop("system"), record.pop("extra")
    if system is not None:
        record["system"] = system
    if extra:
        record["extra"] = extra
    return record


def _read_analysis(item: object, where: str) -> Analysis | None:
    if item is None:
        return None
    if (
        not isinstance(item, Mapping)
        or set(item) != set(_PARTS)
        or not all(isinstance(item[part], str) and item[part].strip() for part in _PARTS)
    ):
        raise DataError(f"{where}: 'analysis' must have exactly the keys {', '.join(_PARTS)}, a sentence each.")
    return Analysis(**item)

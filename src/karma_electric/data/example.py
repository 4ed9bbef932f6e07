"""One training example, and the strict reader of its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation, as_dicts, parse_conversation

CATEGORIES = ("ethical-reasoning", "crisis-response", "coding-assistance", "adversarial", "cross-cultural")
STATUSES = ("candidate", "accepted", "rejected")
_TEXT_KEYS = ("id", "category", "source", "license", "added_in", "status")
_KEYS = {*_TEXT_KEYS, "tags", "messages", "analysis"}


@dataclass(frozen=True)
class Analysis:
    """What the answer weighs, a sentence each."""

    direct: str
    downstream: str
    inaction: str


@dataclass(frozen=True)
class Example:
    """One example of the corpus. No system prompt is stored: a release injects one."""

    id: str
    category: str
    tags: tuple[str, ...]
    messages: Conversation
    analysis: Analysis
    source: str
    license: str
    added_in: str
    status: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, keys in the order of the files."""
        return {
            "id": self.id,
            "category": self.category,
            "tags": list(self.tags),
            "messages": as_dicts(self.messages),
            "analysis": vars(self.analysis).copy(),
            "source": self.source,
            "license": self.license,
            "added_in": self.added_in,
            "status": self.status,
        }


def parse_example(item: object, where: str) -> Example:
    """Read an example and check it.

    Raises:
        DataError: the first thing that is wrong, with `where`.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: found {type(item).__name__}, expected a JSON object.")
    missing, unknown = _KEYS - item.keys(), item.keys() - _KEYS
    if missing or unknown:
        found = f"{sorted(missing)[0]!r} is missing" if missing else f"unknown key {sorted(unknown)[0]!r}"
        raise DataError(f"{where}: {found}.", f"An example has the keys {', '.join(sorted(_KEYS))}.")
    for key in _TEXT_KEYS:
        if not isinstance(item[key], str) or not item[key].strip():
            raise DataError(f"{where}: {key!r} is {item[key]!r}, expected text.")
    _one_of(item["category"], CATEGORIES, "category", where)
    _one_of(item["status"], STATUSES, "status", where)
    tags = item["tags"]
    if not isinstance(tags, list) or not tags or not all(isinstance(tag, str) and tag for tag in tags):
        raise DataError(f"{where}: 'tags' is {tags!r}, expected a non-empty list of words.")
    messages = parse_conversation(item["messages"], where)
    if messages[0].role == "system":
        raise DataError(f"{where}: a system prompt is stored.", "Remove it: a release injects one.")
    if messages[-1].role != "assistant":
        raise DataError(f"{where}: the last turn is the user's, expected an assistant turn to learn from.")
    return Example(
        id=item["id"],
        category=item["category"],
        tags=tuple(tags),
        messages=messages,
        analysis=_parse_analysis(item["analysis"], where),
        source=item["source"],
        license=item["license"],
        added_in=item["added_in"],
        status=item["status"],
    )


def _parse_analysis(item: object, where: str) -> Analysis:
    parts = ("direct", "downstream", "inaction")
    if not isinstance(item, Mapping) or set(item) != set(parts):
        raise DataError(f"{where}: 'analysis' must have exactly the keys {', '.join(parts)}.")
    for part in parts:
        if not isinstance(item[part], str) or not item[part].strip():
            raise DataError(f"{where}: analysis.{part} is empty, expected a sentence.")
    return Analysis(**item)


def _one_of(value: str, allowed: tuple[str, ...], key: str, where: str) -> None:
    if value not in allowed:
        raise DataError(f"{where}: {key} {value!r} is unknown, expected one of {', '.join(allowed)}.")

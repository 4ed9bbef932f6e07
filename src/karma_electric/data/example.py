"""One training example, and the strict reader of its JSON form."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation, as_dicts, parse_conversation

CATEGORIES = ("ethical-reasoning", "crisis-response", "coding-assistance", "adversarial", "cross-cultural")
STATUSES = ("candidate", "accepted", "rejected")
_TEXT_KEYS = ("id", "category", "source", "license", "added_in", "status")
_KEYS = {*_TEXT_KEYS, "tags", "messages", "analysis"}
_CHAT_KEYS = ("messages", "conversations")  # of the forms that other projects keep chats in
_NOT_IN_CHATS = {"category", "analysis", "added_in"}


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
        raise _other_keys(item, sorted(missing), sorted(map(str, unknown)), where)
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


def _other_keys(item: Mapping[str, Any], missing: list[str], unknown: list[str], where: str) -> DataError:
    """What to say of an object whose keys are not those of an example."""
    keys = f"An example has the keys {', '.join(sorted(_KEYS))}."
    for key in unknown:  # a misspelt key is missing too: it is one mistake
        if close := difflib.get_close_matches(key, missing, n=1):
            return DataError(f"{where}: unknown key {key!r}.", f"Did you mean {close[0]!r}? {keys}")
    if set(missing) >= _NOT_IN_CHATS and any(key in item for key in _CHAT_KEYS):
        return DataError(
            f"{where}: a chat, and no example yet ({', '.join(map(repr, missing))} are missing).",
            "Take such a file into a workbench with: karma data import FILE --category CATEGORY. Then decide on it: "
            'karma data review. A recipe takes what was accepted with release.corpus = "workbench.db".',
        )
    found = f"{missing[0]!r} is missing" if missing else f"unknown key {unknown[0]!r}"
    return DataError(f"{where}: {found}.", keys)


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

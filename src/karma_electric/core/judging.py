"""What any question to a judging model needs: material fenced off from instructions, and JSON read strictly.

Knows nothing of what is judged or by which model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from karma_electric.core.artifact import hash_text
from karma_electric.core.messages import Message


class Unparseable(ValueError):
    """An answer of a judge that gives no judgement; the message says why."""


def fence(messages: Sequence[Message]) -> str:
    """The mark of a conversation's turns: 12 hex digits that none of them holds."""
    contents = [[message.role, message.content] for message in messages]
    number = 0
    while True:
        mark = hash_text(json.dumps([number, contents]))[:12]
        if not any(mark in content for _, content in contents):
            return mark
        number += 1


def fenced(messages: Sequence[Message], mark: str) -> str:
    """The turns, each below a line with the mark, and the line that ends them."""
    turns = "\n".join(
        f"[{mark} turn {number}: {'assistant' if message.role == 'assistant' else 'person'}]\n{message.content}"
        for number, message in enumerate(messages, 1)
    )
    return f"{turns}\n[{mark} end]"


def json_values(text: str) -> list[Any]:
    """The one JSON value that a text is, or the outermost JSON objects that stand in it.

    Raises:
        Unparseable: an object with the same key twice.
    """
    try:
        return [json.loads(text, object_pairs_hook=_without_repeats)]
    except Unparseable:
        raise
    except (ValueError, RecursionError):
        return _objects(text)


def _objects(text: str) -> list[Any]:
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
    found, start = [], text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            found.append(value)
        except Unparseable:
            raise
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Unparseable("a JSON object with the same key twice")
    return value

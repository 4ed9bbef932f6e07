"""Transcripts: conversations in a JSON or JSON Lines file, as `karma chat` saves them and other programs write them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import write_json
from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import parse_json
from karma_electric.core.messages import Conversation, as_dicts, parse_conversation

STDIN = "-"
_EXPECTED = 'Expected {"messages": [{"role": "user", "content": "..."}, ...]}, or the list of turns alone.'


@dataclass(frozen=True)
class Transcript:
    """One conversation, with what it was held with where the file says so.

    Attributes:
        name: the place it was read from, for messages ("chat.jsonl line 3").
        messages: the turns.
        model: name of the model that answered.
        cap: its cap.json.
        alpha: strength of the cap at the end of the conversation.
    """

    name: str
    messages: Conversation
    model: str | None = None
    cap: str | None = None
    alpha: float | None = None


def read_transcripts(path: str) -> list[Transcript]:
    """Read every conversation of a file, or of standard input ("-").

    A file is one JSON value or JSON Lines. A value is a conversation (`{"messages": [...]}` or a list of turns), or a
    list of conversations; keys beside `messages` that are not ours are left alone.

    Raises:
        MissingError: no such file.
        DataError: no conversation in it, or one that is none; names the place.
    """
    name, raw = _read(path)
    transcripts = [
        _transcript(item, place) for where, value in _values(raw, name) for place, item in _items(value, where)
    ]
    if not transcripts:
        raise DataError(f"{name} is empty.", _EXPECTED)
    return transcripts


def save_transcript(transcript: Transcript, path: Path) -> None:
    """Write one conversation as JSON, atomically."""
    write_json(
        path,
        {
            "model": transcript.model,
            "cap": transcript.cap,
            "alpha": transcript.alpha,
            "messages": as_dicts(transcript.messages),
        },
    )


def _read(path: str) -> tuple[str, bytes]:
    if path == STDIN:
        return "standard input", sys.stdin.buffer.read()
    file = Path(path)
    if not file.is_file():
        raise MissingError(f"The transcript {path} does not exist.", "Give a .json or .jsonl file, or - for stdin.")
    return file.name, file.read_bytes()


def _values(raw: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """(place, value): the whole as one JSON value, or one per line where the first line is one by itself."""
    lines = [(number, line) for number, line in enumerate(raw.splitlines(), 1) if line.strip()]
    if len(lines) > 1 and _is_value(lines[0][1]):
        yield from ((f"{name} line {number}", parse_json(line, f"{name} line {number}")) for number, line in lines)
    elif lines:
        yield name, parse_json(raw, name)


def _is_value(line: bytes) -> bool:
    try:
        parse_json(line, "")
    except DataError:
        return False
    return True


def _items(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    several = isinstance(value, list) and all(
        isinstance(v, list) or (isinstance(v, dict) and "messages" in v) for v in value
    )
    if several and value:
        yield from ((f"{where} conversation {number}", item) for number, item in enumerate(value, 1))
    else:
        yield where, value


def _transcript(value: Any, where: str) -> Transcript:
    held = value if isinstance(value, dict) else {"messages": value}
    if not isinstance(held.get("messages"), list) or not held["messages"]:
        raise DataError(f"{where} holds no conversation.", _EXPECTED)
    model, cap, alpha = held.get("model"), held.get("cap"), held.get("alpha")
    return Transcript(
        where,
        parse_conversation(held["messages"], where),
        model if isinstance(model, str) else None,
        cap if isinstance(cap, str) else None,
        float(alpha) if isinstance(alpha, int | float) and not isinstance(alpha, bool) else None,
    )

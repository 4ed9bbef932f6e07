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
        alphas: strength at which each turn was given, one per message, None where that is not said (of what the user
            says it never is); empty when it is not said of any.
    """

    name: str
    messages: Conversation
    model: str | None = None
    cap: str | None = None
    alpha: float | None = None
    alphas: tuple[float | None, ...] = ()

    @property
    def answered_at(self) -> dict[float, list[int]]:
        """Strength -> numbers of the turns that were given at it, from 1, in order of appearance.

        Of answers that do not say it, the strength at the end of the conversation.
        """
        said = self.alphas or (None,) * len(self.messages)
        found: dict[float, list[int]] = {}
        for number, (message, alpha) in enumerate(zip(self.messages, said, strict=True), 1):
            strength = self.alpha if alpha is None else alpha
            if message.role == "assistant" and strength is not None:
                found.setdefault(strength, []).append(number)
        return found


def read_transcripts(path: str) -> list[Transcript]:
    """Read every conversation of a file, or of standard input ("-").

    A file is one JSON value or JSON Lines. A value is a conversation (`{"messages": [...]}` or a list of turns), or a
    list of conversations; keys beside `messages` that are not ours are left alone. An assistant turn may have `alpha`
    beside role and content.

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
    """Write one conversation as JSON, atomically; `alpha` stands in each answer whose strength is known."""
    alphas = transcript.alphas or (None,) * len(transcript.messages)
    turns: list[dict[str, Any]] = [
        turn if alpha is None else {**turn, "alpha": alpha}
        for turn, alpha in zip(as_dicts(transcript.messages), alphas, strict=True)
    ]
    write_json(
        path,
        {
            "model": transcript.model,
            "cap": transcript.cap,
            "alpha": transcript.alpha,
            "messages": turns,
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
        for number, line in lines:
            place = f"{name} line {number}"
            yield place, parse_json(line, place, expected=_EXPECTED)
    elif lines:
        yield name, parse_json(raw, name, expected=_EXPECTED)


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
    model, cap = held.get("model"), held.get("cap")
    turns, alphas = zip(*map(_apart, held["messages"]), strict=True)
    return Transcript(
        where,
        parse_conversation(list(turns), where),
        model if isinstance(model, str) else None,
        cap if isinstance(cap, str) else None,
        _number(held.get("alpha")),
        alphas if any(alpha is not None for alpha in alphas) else (),
    )


def _apart(turn: Any) -> tuple[Any, float | None]:
    """A turn without the strength it was given at, and that strength."""
    if not isinstance(turn, dict) or turn.get("role") != "assistant" or "alpha" not in turn:
        return turn, None
    return {key: value for key, value in turn.items() if key != "alpha"}, _number(turn["alpha"])


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:  # an integer of hundreds of digits
        return None

"""Messages and conversations: what every stage passes around. Knows nothing of templates or tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from karma_electric.core.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form chat templates and JSON files use."""
        return {"role": self.role, "content": self.content}


Conversation = list[Message]


def user(content: str) -> Message:
    """A user turn."""
    return Message("user", content)


def system(content: str) -> Message:
    """A system prompt."""
    return Message("system", content)


def assistant(content: str) -> Message:
    """An assistant turn."""
    return Message("assistant", content)


def as_dicts(conversation: Iterable[Message]) -> list[dict[str, str]]:
    """A conversation as the list of dicts that chat templates take."""
    return [message.as_dict() for message in conversation]


def parse_conversation(items: object, where: str) -> Conversation:
    """Read a list of `{"role", "content"}` and check its shape.

    A conversation is an optional system message followed by user and assistant turns that alternate,
    starting with the user. `where` names the place in error messages ("corpus/crisis.jsonl line 4"). Content is text,
    or what `text_of` takes for text.

    Raises:
        DataError: naming the turn that is wrong.
    """
    if not isinstance(items, list) or not items:
        raise DataError(f"{where}: 'messages' is {_kind(items)}, expected a non-empty list of turns.")
    conversation: Conversation = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise DataError(f"{where}: turn {number} is {_kind(item)}, expected an object.")
        unknown = set(item) - {"role", "content"}
        if unknown:
            raise DataError(f"{where}: turn {number} has the unknown key {min(unknown)!r}, expected role and content.")
        role = item.get("role")
        if role not in ROLES:
            raise DataError(f"{where}: turn {number} has role {role!r}, expected one of {', '.join(ROLES)}.")
        if "content" not in item:
            raise DataError(f"{where}: turn {number} ({role}) has no 'content', expected text.")
        content = text_of(item["content"], f"{where}: turn {number} ({role})")
        if not content.strip() and role != "system":
            raise DataError(f"{where}: turn {number} ({role}) is empty, expected text.")
        conversation.append(Message(cast("Role", role), content))
    turns = conversation[1:] if conversation[0].role == "system" else conversation
    for number, message in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if message.role != expected:
            previous = turns[number - 1].role if number else "nothing"
            raise DataError(
                f"{where}: {message.role} turn after {previous}, expected {expected}.",
                "User and assistant turns alternate, starting with the user: merge or remove one.",
            )
    if not turns:
        raise DataError(f"{where}: only a system message, expected at least one user turn.")
    return conversation


def text_of(content: object, where: str) -> str:
    """The text of a message: a string, or OpenAI's list of typed parts where that is a single part of text.

    Several parts of text are refused: some programs put nothing between them, others a line break.

    Raises:
        DataError: what it is instead, with `where` ("chat.jsonl line 4: turn 2 (user)").
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise DataError(f"{where}: 'content' is {_kind(content)}, expected text.")
    for number, part in enumerate(content, 1):
        if not isinstance(part, Mapping):
            raise DataError(f"{where}: part {number} of 'content' is {_kind(part)}, expected an object.")
        if part.get("type") != "text":
            raise DataError(
                f"{where}: part {number} of 'content' has the type {part.get('type')!r}, expected 'text'.",
                "Only text can be used: leave the message out, or say in words what the part showed.",
            )
        if not isinstance(part.get("text"), str) or set(part) != {"type", "text"}:
            raise DataError(
                f"{where}: part {number} of 'content' has the keys {', '.join(map(str, part))}, expected type and "
                "text, a string."
            )
    if len(content) > 1:
        raise DataError(
            f"{where}: 'content' has {len(content)} parts of text, expected one.",
            "Join them into one: only you know whether a line break belongs between them.",
        )
    return str(content[0]["text"])


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return "an empty list" if value == [] else f"of type {type(value).__name__}"

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
    starting with the user. `where` names the place in error messages ("corpus/crisis.jsonl line 4").

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
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            raise DataError(f"{where}: turn {number} has role {role!r}, expected one of {', '.join(ROLES)}.")
        if not isinstance(content, str) or (not content.strip() and role != "system"):
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


def _kind(value: Any) -> str:
    return "an empty list" if value == [] else f"of type {type(value).__name__}"

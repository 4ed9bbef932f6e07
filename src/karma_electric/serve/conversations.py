"""Messages of a request as a conversation that a model can answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation, Message, Role, system, text_of
from karma_electric.serve.bodies import shown
from karma_electric.serve.errors import HttpError

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# what clients send along when they hand an answer's message back; anything but nothing would change the prompt
_EMPTY = (
    *("name", "refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id", "tool_name"),
    *("images", "thinking", "reasoning", "reasoning_content"),
)


def read_messages(items: Sequence[Mapping[str, Any]], default_system: str | None, *, most: int) -> Conversation:
    """Read the messages of a request.

    A conversation is an optional system message and any turns of user and assistant, a user's last. (What else a
    chat template refuses, the engine says.)

    Args:
        items: the messages, each with role and content; `developer` is another word for `system`.
        default_system: what is said first where no system message is there; None for nothing.
        most: messages that there may be.

    Raises:
        HttpError: naming the message that cannot be used.
    """
    if not items:
        raise HttpError(400, "messages is empty, expected at least one of the user.", param="messages")
    if len(items) > most:
        raise HttpError(
            400, f"There are {len(items)} messages, more than the {most} there may be.",
            "Leave out the oldest (karma serve --max-messages changes the limit).", param="messages",
        )  # fmt: skip
    conversation = [_read(item, f"messages[{number}]", first=number == 0) for number, item in enumerate(items)]
    if conversation[-1].role != "user":
        raise HttpError(
            400,
            f"The last message is of the {conversation[-1].role}, expected one of the user.",
            "Answers are not continued here; /v1/completions continues any text.",
            param="messages",
        )
    if conversation[0].role != "system" and default_system is not None:
        return [system(default_system), *conversation]
    return conversation


def _read(item: Mapping[str, Any], where: str, *, first: bool) -> Message:
    role = _ROLES.get(item["role"])
    if role is None:
        raise HttpError(
            400, f"{where}.role is {shown(item['role'])}, expected one of {', '.join(_ROLES)}.",
            "Tools are not supported." if item["role"] in ("tool", "function") else "", param=f"{where}.role",
        )  # fmt: skip
    if role == "system" and not first:
        raise HttpError(
            400, f"{where} is a {item['role']} message, expected it first or not at all.", "Join them into one.",
            param=where,
        )  # fmt: skip
    for key, value in item.items():
        if key in ("role", "content") or (key in _EMPTY and value in (None, "", [], {})):
            continue
        hint = "Only text can be used." if key in _EMPTY else "A message has role and content."
        raise HttpError(400, f"{where}.{shown(key)[1:-1]} is not supported.", hint, param=where,
                        code="unsupported_parameter")  # fmt: skip
    try:
        content = text_of(item.get("content"), where)
    except DataError as error:
        raise HttpError(400, error.message, error.hint, param=f"{where}.content") from None
    if not content and role == "user":
        raise HttpError(400, f"{where} (user) is empty, expected text.", param=f"{where}.content")
    return Message(cast("Role", role), content)

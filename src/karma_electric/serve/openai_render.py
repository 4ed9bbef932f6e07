"""Answers in OpenAI's form, whole and in chunks. Knows nothing of requests and connections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from karma_electric.models.engines.live import LiveToken
from karma_electric.models.engines.protocol import Completion

_PART_OF_A_CHARACTER = "�"


def event(value: object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def usage(completions: Sequence[Completion], prompts: int) -> dict[str, int]:
    """Tokens of all answers; a prompt that has several answers counts once.

    Args:
        completions: in the order of their prompts, as many for each.
        prompts: how many there were.
    """
    each = len(completions) // prompts
    asked = sum(completion.usage.prompt_tokens for completion in completions[::each])
    answered = sum(completion.usage.completion_tokens for completion in completions)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def chat_logprobs(tokens: Sequence[LiveToken]) -> dict[str, Any]:
    """Log-probabilities as `/v1/chat/completions` has them."""

    def one(text: str, logprob: float | None) -> dict[str, Any]:
        whole = _PART_OF_A_CHARACTER not in text
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}

    content = [
        one(token.text, token.logprob) | {"top_logprobs": [one(text, p) for text, p in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[LiveToken], *, offset: int) -> dict[str, Any]:
    """Log-probabilities as `/v1/completions` has them. `offset`: characters of the answer before these tokens."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) for token in tokens],
        "text_offset": offsets,
    }

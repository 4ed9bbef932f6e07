"""OpenAI's request bodies: what is served of them, what is ignored, and what is refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from karma_electric.models.engines.live import MAX_LOGPROBS, MAX_STOPS
from karma_electric.serve.bodies import Body, Foreign

_SIXTY_FOUR_BITS = 2**63
Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=MAX_STOPS)]
Model = Annotated[str, Field(min_length=1, max_length=256, description="the name that GET /v1/models gives")]

_IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prediction"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    }
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
}
CHAT = Foreign(
    _IGNORED,
    {
        **_NEUTRAL,
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "reasoning_effort": (None, "none"),
        "verbosity": (None,),
        "web_search_options": (None,),
        "moderation": (None,),
    },
)
TEXT = Foreign(_IGNORED, {**_NEUTRAL, "echo": (None, False), "suffix": (None, "")})


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="ignored")


class _Common(Body):
    model: Model
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token; the server's default")
    top_p: float | None = Field(None, gt=0, le=1, description="sample from the likeliest tokens that sum to this")
    max_tokens: int | None = Field(None, ge=1, description="longest answer, in tokens")
    n: int | None = Field(None, ge=1, description="answers to give; the i-th is sampled with seed + i")
    stop: str | Stop | None = Field(None, description="the answer ends before the first of these")
    seed: int | None = Field(None, ge=-_SIXTY_FOUR_BITS, lt=_SIXTY_FOUR_BITS, description="random when not given")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    alpha: float | None = Field(None, ge=0, le=1, description="ours: strength of the cap; 0 off, 0.5 soft, 1 hard")
    drift: bool | None = Field(None, description="ours: measure how far each token lies from the persona")

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None or self.stop == "":
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatMessage(BaseModel):
    """A turn. `content` is text, or OpenAI's list with one part of text."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: str = Field(description="system (or developer) first, then user and assistant, a user's last")
    content: Any = Field(None, json_schema_extra={"anyOf": [{"type": "string"}, {"type": "array"}]})


class ChatBody(_Common):
    """Body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="a newer name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


class TextBody(_Common):
    """Body of `POST /v1/completions`: text to continue as it is, with no chat template."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    best_of: int | None = Field(None, ge=1, description="must be what n is: the best of more is not looked for")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

"""What an engine is: something that answers conversations. The engines beside this file implement it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from karma_electric.core.messages import Conversation

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; then `top_p` and `seed` do not matter."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Usage:
    """Token counts of one completion."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """One answer. `cap_rate` is the share of (token, capped layer) pairs the cap moved, None without a cap."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    cap_rate: float | None = None


# Called with each piece of text as it is decoded.
OnText = Callable[[str], None]


class Engine(Protocol):
    """Answers conversations in batches, or one as a stream."""

    @property
    def name(self) -> str:
        """Short name, for results and messages."""

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: float | None = None
    ) -> list[Completion]:
        """Answer each conversation, in order.

        Args:
            conversations: each ends with a user turn.
            sampling: how tokens are chosen.
            alpha: strength of the cap for this call; None is the engine's own, 0 is off.
        """

    def stream(self, conversation: Conversation, sampling: Sampling, *, alpha: float | None = None) -> Iterator[str]:
        """Yield the answer piece by piece."""

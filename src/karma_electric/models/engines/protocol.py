"""What an engine is: something that answers conversations. The engines beside this file implement it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from karma_electric.core.messages import Conversation

FinishReason = Literal["stop", "length"]
# Strength of a cap: one for all, one for each conversation, or the engine's own.
Alpha = float | Sequence[float] | None


def acts(alpha: Alpha) -> bool:
    """Whether a strength asks for a cap that does anything."""
    return any(alpha) if isinstance(alpha, Sequence) else bool(alpha)


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
class TokenDrift:
    """How far one token's residual stream lies along the axis, away from the persona (see steer/drift.py).

    Attributes:
        drift: mean over the capped blocks of (projection - threshold) / scale; positive is beyond the ceiling.
        share_above: share of the capped blocks in which the projection is above the threshold.
        projections: the raw projection at each capped block, in the cap's order.
    """

    drift: float
    share_above: float
    projections: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"drift": self.drift, "share_above": self.share_above, "projections": list(self.projections)}


@dataclass(frozen=True)
class Drift:
    """The drift of a run of tokens: an answer, or the content of a turn.

    A token's drift is read at its own position, when it is fed back. None marks one that never was: the last token
    of an answer that was cut at its limit.
    """

    tokens: tuple[TokenDrift | None, ...]

    @property
    def measured(self) -> tuple[TokenDrift, ...]:
        """The tokens that have a drift."""
        return tuple(token for token in self.tokens if token is not None)

    @property
    def mean(self) -> float | None:
        """Mean drift of the tokens; None without any."""
        return _mean([token.drift for token in self.measured])

    @property
    def max(self) -> float | None:
        """Highest drift of a token; None without any."""
        return max((token.drift for token in self.measured), default=None)

    @property
    def share_above(self) -> float | None:
        """Share of (token, capped block) pairs above the threshold: the cap rate, where a cap acts."""
        return _mean([token.share_above for token in self.measured])

    def as_dict(self, *, tokens: bool = True) -> dict[str, Any]:
        """As JSON, with or without the single tokens."""
        summary = {"mean": self.mean, "max": self.max, "share_above": self.share_above}
        return summary | ({"tokens": [t and t.as_dict() for t in self.tokens]} if tokens else {})


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Completion:
    """One answer.

    `cap_rate` is the share of (token, capped layer) pairs the cap moved, None without a cap. `drift` is None where
    the engine measures none.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    cap_rate: float | None = None
    drift: Drift | None = None


# Called with each piece of text as it is decoded.
OnText = Callable[[str], None]
# Called with the text of each token of an answer and its drift, as soon as that is known: one token later.
OnDrift = Callable[[str, "TokenDrift | None"], None]


class Engine(Protocol):
    """Answers conversations in batches, or one as a stream."""

    @property
    def name(self) -> str:
        """Short name, for results and messages."""

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: Alpha = None
    ) -> list[Completion]:
        """Answer each conversation, in order.

        Args:
            conversations: each ends with a user turn.
            sampling: how tokens are chosen.
            alpha: strength of the cap for this call, or one for each conversation; None is the engine's own, 0 is off.
        """

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        alpha: float | None = None,
        on_drift: OnDrift | None = None,
    ) -> Iterator[str]:
        """Yield the answer piece by piece. An engine that measures drift tells `on_drift` that of every token."""


@runtime_checkable
class SeededEngine(Engine, Protocol):
    """An engine that answers under several seeds in one batch, each answer as it would be under its seed alone."""

    def generate_seeds(
        self, conversations: Sequence[Conversation], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """Answer each conversation under its own seed, in order; the cap, where there is one, is the engine's own.

        Args:
            conversations: each ends with a user turn; the same one under several seeds is read once.
            sampling: how tokens are chosen; its seed does not matter.
            seeds: one for each conversation.
        """

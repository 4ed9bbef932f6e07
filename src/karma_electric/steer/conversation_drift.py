"""Drift of whole conversations: one pass over the rendered text, the drift of every turn, and what to say about it.

What drift is, per token, is drift.py's business.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import DataError, InputError
from karma_electric.core.messages import Conversation, Role
from karma_electric.core.progress import Progress
from karma_electric.models.engines.protocol import Drift
from karma_electric.models.turns import Rendered, render_turns
from karma_electric.steer.activations import batches_by_length, right_padded, run_decoder
from karma_electric.steer.drift import recording_projections, token_drifts
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 4096
TREND_ANSWERS = 4  # fewer are no trend
_AROUND = 4  # tokens shown on each side of a peak


@dataclass(frozen=True)
class TurnDrift:
    """One turn.

    Attributes:
        number: its place in the conversation, from 1, the system message counted.
        role: whose it is.
        drift: of the tokens of its content; headers and end-of-turn tokens belong to no turn.
        pieces: the text of each of those tokens.
    """

    number: int
    role: Role
    drift: Drift
    pieces: tuple[str, ...]

    @property
    def peak(self) -> tuple[str, str, str] | None:
        """Text before, at and after the token that lies furthest out; None for a turn without tokens."""
        drifts = [-math.inf if token is None else token.drift for token in self.drift.tokens]
        if not self.drift.measured:
            return None
        at = drifts.index(max(drifts))
        before, after = self.pieces[max(0, at - _AROUND) : at], self.pieces[at + 1 : at + 1 + _AROUND]
        return "".join(before), self.pieces[at], "".join(after)

    def as_dict(self, *, tokens: bool = False) -> dict[str, Any]:
        """As JSON, with or without the single tokens."""
        peak = self.peak
        value: dict[str, Any] = {"turn": self.number, "role": self.role, "n_tokens": len(self.pieces)}
        value |= self.drift.as_dict(tokens=False)
        value["peak"] = None if peak is None else {"before": peak[0], "at": peak[1], "after": peak[2]}
        if tokens:
            value["tokens"] = [
                {"text": piece} | (token.as_dict() if token else {"drift": None})
                for piece, token in zip(self.pieces, self.drift.tokens, strict=True)
            ]
        return value


@dataclass(frozen=True)
class Trend:
    """Least-squares slope of the answers' mean drift, in deviations per answer, with its standard error (n > 2)."""

    slope: float
    error: float | None
    n: int

    @property
    def sentence(self) -> str:
        """What can be said of it."""
        if self.n < TREND_ANSWERS:
            return f"{self.slope:+.2f} sd per answer, over {self.n} answers only: too few to call it a trend."
        assert self.error is not None  # n > 2
        if abs(self.slope) <= 2 * self.error:
            return f"No clear trend: {self.slope:+.2f} +- {self.error:.2f} sd per answer over {self.n} answers."
        way = "away from" if self.slope > 0 else "towards"
        return f"The answers drift {way} the persona: {self.slope:+.2f} +- {self.error:.2f} sd per answer, n={self.n}."


@dataclass(frozen=True)
class ConversationDrift:
    """All turns of a conversation, and what its answers are held against.

    Attributes:
        turns: in order.
        alarm: mean drift above which an answer alarms.
        ordinary: mean drifts of ordinary answers (held-out responses), in rising order; may be empty.
    """

    turns: tuple[TurnDrift, ...]
    alarm: float
    ordinary: tuple[float, ...] = ()

    @property
    def answers(self) -> tuple[TurnDrift, ...]:
        """The model's turns that have tokens."""
        return tuple(turn for turn in self.turns if turn.role == "assistant" and turn.drift.mean is not None)

    @property
    def beyond(self) -> tuple[TurnDrift, ...]:
        """The answers whose mean is above the alarm level."""
        return tuple(turn for turn in self.answers if _mean(turn) > self.alarm)

    def rank(self, turn: TurnDrift) -> float | None:
        """Share of ordinary answers whose mean is lower than that of this answer; None for other turns."""
        if not self.ordinary or turn not in self.answers:
            return None
        return bisect.bisect_left(self.ordinary, _mean(turn)) / len(self.ordinary)

    @property
    def trend(self) -> Trend | None:
        """Of the answers, in order; None for a single one."""
        return trend_of([_mean(turn) for turn in self.answers])

    @property
    def verdict(self) -> str:
        """One sentence on the answer that is furthest out, and which others are beyond the alarm level."""
        furthest = max(self.answers, key=_mean)
        mean, share = _mean(furthest), furthest.drift.share_above
        side = "above" if mean > 0 else "below"
        level = f"the alarm level ({self.alarm:+.2f} sd)"
        said = f"mean {abs(mean):.2f} sd {side} the ceiling, {share:.0%} of its tokens above it."
        numbers = [str(turn.number) for turn in self.beyond]
        if not numbers:
            return f"No answer is beyond {level}: turn {furthest.number} is highest, {said}"
        if len(numbers) == 1:
            return f"Turn {numbers[0]} is beyond {level}: {said}"
        turns = f"{', '.join(numbers[:-1])} and {numbers[-1]}"
        return f"Turns {turns} are beyond {level}: turn {furthest.number} is highest, {said}"

    def as_dict(self, *, tokens: bool = False) -> dict[str, Any]:
        """As JSON."""
        trend = self.trend
        return {
            "turns": [
                turn.as_dict(tokens=tokens) | {"beyond_alarm": turn in self.beyond, "rank": self.rank(turn)}
                for turn in self.turns
            ],
            "beyond_alarm": [turn.number for turn in self.beyond],
            "trend": trend and {"slope": trend.slope, "standard_error": trend.error, "answers": trend.n},
            "verdict": self.verdict,
        }


def trend_of(means: Sequence[float]) -> Trend | None:
    """Slope of `means` over 0, 1, 2, ... by least squares; its standard error from the residuals, n - 2 of freedom."""
    n = len(means)
    if n < 2:
        return None
    middle, height = (n - 1) / 2, sum(means) / n
    spread = sum((x - middle) ** 2 for x in range(n))
    slope = sum((x - middle) * (y - height) for x, y in enumerate(means)) / spread
    if n == 2:
        return Trend(slope, None, n)
    left = sum((y - height - slope * (x - middle)) ** 2 for x, y in enumerate(means))
    return Trend(slope, math.sqrt(left / (n - 2) / spread), n)


def _mean(turn: TurnDrift) -> float:
    mean = turn.drift.mean
    assert mean is not None  # of an answer with tokens
    return mean


def render_all(
    tokenizer: PreTrainedTokenizerBase, conversations: Mapping[str, Conversation], context: int
) -> list[Rendered]:
    """Render conversations, each with its name for errors.

    Raises:
        DataError: one has no answer. InputError: one is longer than the model's context; names the turn.
    """
    rendered = []
    for name, conversation in conversations.items():
        if not any(message.role == "assistant" for message in conversation):
            raise DataError(f"{name} has no assistant turn.", "There is no answer to measure the drift of.")
        try:
            one = render_turns(tokenizer, conversation)
        except InputError as error:
            raise InputError(f"{name}: {error.message}", error.hint) from None
        if len(one.ids) > context:
            turn = next((t for t in one.turns if t.tokens and t.tokens[-1] >= context), one.turns[-1])
            raise InputError(
                f"{name} has {len(one.ids)} tokens, more than the model's context of {context}: "
                f"turn {turn.number} ({turn.role}) does not fit.",
                f"Cut the transcript before turn {turn.number}.",
            )
        rendered.append(one)
    return rendered


def project(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    rendered: Sequence[Rendered],
    *,
    alpha: float = 0.0,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress,
) -> list[torch.Tensor]:
    """Projection of every token of conversations at the capped blocks, teacher-forced, in batches by length.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        cap: site, blocks and directions.
        rendered: the conversations.
        alpha: strength of the cap while they are read; 0 leaves the model as it is.
        batch_tokens: most tokens in a batch, padding included; a longer conversation goes alone.
        progress: told about the batches.

    Returns:
        One float32 [tokens, capped blocks] each, on the CPU.
    """
    found: dict[int, torch.Tensor] = {}
    batches = batches_by_length([len(one.ids) for one in rendered], batch_tokens)
    with recording_projections(model, cap, alpha=alpha) as (recorder, _):
        for number, batch in enumerate(batches):
            progress.update(number, len(batches), "reading conversations")
            ids, mask = right_padded([rendered[i].ids for i in batch], int(tokenizer.pad_token_id or 0), model.device)
            recorder.clear()
            run_decoder(model, ids, mask)
            values = recorder.projections()
            found |= {i: values[row, : len(rendered[i].ids)].clone() for row, i in enumerate(batch)}
        progress.update(len(batches), len(batches), "reading conversations")
    return [found[i] for i in range(len(rendered))]


def turn_drifts(
    rendered: Rendered, projections: torch.Tensor, cap: Cap, scales: Mapping[int, float]
) -> tuple[TurnDrift, ...]:
    """The drift of every turn, from the projections [tokens, capped blocks] of a conversation.

    The first position, an attention sink, is left out.
    """
    drifts = token_drifts(projections, cap, scales)
    turns = []
    for turn in rendered.turns:
        kept = [(at, piece) for at, piece in zip(turn.tokens, turn.pieces, strict=True) if at > 0]
        tokens, pieces = tuple(drifts[at] for at, _ in kept), tuple(piece for _, piece in kept)
        turns.append(TurnDrift(turn.number, turn.role, Drift(tokens), pieces))
    return tuple(turns)

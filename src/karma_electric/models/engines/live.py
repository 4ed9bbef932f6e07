"""Live engines: many requests at once, each with its own strength, sampling and seed, answered piece by piece.

What they have in common is here; live_hf.py, live_llamacpp.py and live_scripted.py implement it. Nothing here knows of
HTTP: whoever serves turns bodies into `LiveRequest`s, and what is raised here into status codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from karma_electric.core.errors import InputError, KarmaError
from karma_electric.core.messages import Conversation
from karma_electric.models.engines.protocol import Completion, Sampling, TokenDrift

MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1


class FullError(KarmaError):
    """As many requests wait already as may."""


class ClosedError(KarmaError):
    """The engine is closed, or closing: it takes no more requests, and gives up those it has."""


class EngineError(KarmaError):
    """The engine failed for a reason that is not the request's. `broken`: it will answer nothing any more."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "", *, broken: bool = False) -> None:
        super().__init__(message, hint)
        self.broken = broken


class TooLongError(InputError):
    """Prompt and answer do not fit into the context. `room`: tokens that are left for the answer."""

    def __init__(self, message: str, hint: str = "", *, room: int) -> None:
        super().__init__(message, hint)
        self.room = room


@dataclass(frozen=True)
class LiveRequest:
    """One answer that is wanted.

    Attributes:
        prompt: a conversation, which the chat template renders; or raw text to continue, with no template.
        sampling: how tokens are chosen. The same request with the same seed gets the same answer, alone or in company.
        alpha: strength of the cap; None is the engine's own.
        drift: measure the drift of every token.
        stop: the text ends before the first of these.
        logprobs: None for none; k >= 0 for the log-probability of each token, and the k likeliest in its place.
    """

    prompt: Conversation | str
    sampling: Sampling
    alpha: float | None = None
    drift: bool = False
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class LiveToken:
    """One token of an answer.

    Attributes:
        id: in the model's vocabulary; -1 where an engine has no such number.
        text: the token alone; a character that it holds a part of shows as the replacement character.
        logprob: natural logarithm of its probability under the model, before temperature and top_p; None if not asked.
        top: the likeliest tokens in its place, with theirs.
        drift: None if not asked, and for a last token that was never fed back.
    """

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    drift: TokenDrift | None = None


@dataclass(frozen=True)
class Piece:
    """What became known of an answer.

    Attributes:
        text: final: whole characters, and nothing that may be the start of a stop string.
        tokens: those whose text is final, at least in part. While drift is measured they come one step after their
            text: a token's drift is read when it is fed back. Tokens behind the stop string never come.
    """

    text: str
    tokens: tuple[LiveToken, ...] = ()


@dataclass(frozen=True)
class Load:
    """How many requests are being answered, and how many wait for a place."""

    active: int
    waiting: int


class LiveAnswer(Protocol):
    """An answer on its way: iterate from one thread; it blocks until there is more."""

    def __iter__(self) -> Iterator[Piece]:
        """The pieces. Raises what went wrong."""

    def cancel(self) -> None:
        """Nobody wants it any more: from any thread, as often as you like. The iteration ends."""

    @property
    def completion(self) -> Completion:
        """The whole answer, after the iteration has ended; what there was of it if it was cancelled."""


class LiveEngine(Protocol):
    """Answers requests as they come, several together.

    Attributes:
        context: tokens of prompt and answer together.
        can_alpha: whether a request may choose its strength; others refuse any but None.
        can_drift, can_logprobs: whether they can be had; where not, asking is refused.
        default_alpha: the strength for requests that name none; None without a cap.
    """

    name: str
    context: int
    can_alpha: bool
    can_drift: bool
    can_logprobs: bool
    default_alpha: float | None

    def submit(self, request: LiveRequest) -> LiveAnswer:
        """Take a request, without waiting for its answer.

        Raises:
            InputError: it cannot be answered: too long, out of range, or asking for what this engine has not.
            FullError: too many wait already.
            ClosedError: the engine is closed. EngineError: it broke.
        """

    def load(self) -> Load:
        """How busy it is."""

    def close(self, *, drain_s: float = 0.0) -> None:
        """Take no more, let what is there finish for at most `drain_s`, give up the rest. May be called again."""


def check_request(request: LiveRequest, engine: LiveEngine) -> None:
    """Refuse what no engine could answer, or this one cannot.

    Raises:
        InputError: what was asked and what may be.
    """
    _check_sampling(request.sampling)
    _check_text(request.prompt)
    if len(request.stop) > MAX_STOPS or not all(request.stop):
        raise InputError(
            f"stop has {len(request.stop)} strings, {sum(not s for s in request.stop)} of them empty.",
            f"Give at most {MAX_STOPS}, none of them empty.",
        )
    if request.alpha is not None and not 0.0 <= request.alpha <= 1.0:
        raise InputError(
            f"alpha is {request.alpha:g}, expected a number from 0 (off) to 1 (hard).", "0.5 is the soft cap."
        )
    if request.alpha is not None and not engine.can_alpha:
        raise InputError(
            f"alpha {request.alpha:g} was asked for, but the engine {engine.name} runs this model as it is.",
            "Leave alpha out, or load a checkpoint with a cap.",
        )
    if request.drift and not engine.can_drift:
        raise InputError(
            f"drift was asked for, but the engine {engine.name} measures none for this model.",
            "Leave drift out, or load a checkpoint with the cap of its run.",
        )
    if request.logprobs is not None:
        if not engine.can_logprobs:
            raise InputError(f"The engine {engine.name} gives no log-probabilities.", "Leave logprobs out.")
        if not 0 <= request.logprobs <= MAX_LOGPROBS:
            raise InputError(f"logprobs is {request.logprobs}.", f"Give a number from 0 to {MAX_LOGPROBS}.")


def refused_by_template(error: Exception) -> InputError:
    """What to say of a conversation that the chat template refuses."""
    return InputError(
        f"The chat template refuses this conversation ({error}).", "Turns alternate, starting with the user."
    )


def _check_text(prompt: Conversation | str) -> None:
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    if not texts:
        raise InputError("The conversation is empty.", "Give at least one user turn.")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text has half a surrogate pair ({text[error.start]!a}), which is no character.",
                "Send whole characters.",
            ) from None


def _check_sampling(sampling: Sampling) -> None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InputError(f"temperature is {sampling.temperature:g}, expected 0 or more.", "0 is greedy, 0.7 usual.")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top_p is {sampling.top_p:g}, expected more than 0 and at most 1.", "1 leaves no token out.")
    if sampling.max_new_tokens < 1:
        raise InputError(f"{sampling.max_new_tokens} new tokens were asked for, expected 1 or more.", "256 is usual.")
    if not 0 <= sampling.seed <= MAX_SEED:
        raise InputError(f"seed is {sampling.seed}, expected 0 to 2**63 - 1.", "Any such number will do.")


def check_length(n_prompt: int, sampling: Sampling, context: int) -> None:
    """Refuse a prompt without tokens, or one that does not fit with its answer.

    Raises:
        InputError: no tokens. TooLongError: how many there are, and may be.
    """
    if n_prompt == 0:
        raise InputError("The prompt has no tokens.", "Give some text to continue.")
    if n_prompt + sampling.max_new_tokens > context:
        raise TooLongError(
            f"The conversation has {n_prompt} tokens; with {sampling.max_new_tokens} new ones that is more than "
            f"the model's context of {context}.",
            "Shorten it, or lower the number of new tokens.",
            room=max(0, context - n_prompt),
        )

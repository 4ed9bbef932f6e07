"""A live engine that answers from a script: for tests of what is built on live engines, and for trying them out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial

from karma_electric.models.engines.live import (
    LiveAnswer,
    LiveRequest,
    LiveToken,
    Load,
    check_length,
    check_request,
)
from karma_electric.models.engines.live_pool import AnswerPool, PooledAnswer
from karma_electric.models.engines.live_text import Composer
from karma_electric.models.engines.protocol import Completion, TokenDrift, Usage

LiveScript = Callable[[LiveRequest], str]
ScriptedDrift = Callable[[int], TokenDrift]


class LiveScripted:
    """Answers with `script(request)`, a word at a time: a token is a word with the space in front of it.

    Where the script is a function of the request, so are the answers, whatever else is going on. It has no
    log-probabilities.

    Attributes:
        requests: what it was asked, in order.
    """

    name = "scripted"
    can_logprobs = False

    def __init__(
        self,
        script: LiveScript | Sequence[str],
        *,
        delay_s: float = 0.0,
        rows: int = 4,
        queue: int = 64,
        context: int = 4096,
        alpha: float | None = None,
        drift: ScriptedDrift | None = None,
    ) -> None:
        """Make one.

        Args:
            script: what to answer; or answers given in turn, over and over. What it raises, the answer raises.
            delay_s: how long each word takes.
            rows: requests answered at a time.
            queue: how many more may wait.
            context: words of prompt and answer together.
            alpha: as if there were a cap of this strength; it changes nothing, but requests may choose another, and
                their cap rate is the strength that they chose.
            drift: as if drift were measured: number of a token -> its drift.
        """
        self.context = context
        self.default_alpha = alpha
        self.can_alpha = alpha is not None
        self.can_drift = drift is not None
        self.requests: list[LiveRequest] = []
        self._script = script if callable(script) else _in_turn(list(script))
        self._delay_s = delay_s
        self._drift = drift
        self._pool = AnswerPool(rows, queue)

    def submit(self, request: LiveRequest) -> LiveAnswer:
        """See `LiveEngine.submit`."""
        check_request(request, self)
        n_prompt = _n_words(request)
        check_length(n_prompt, request.sampling, self.context)
        answer = self._pool.add(partial(self._answer, request, n_prompt))
        self.requests.append(request)
        return answer

    def load(self) -> Load:
        """See `LiveEngine.load`."""
        return self._pool.load()

    def close(self, *, drain_s: float = 0.0) -> None:
        """See `LiveEngine.close`."""
        self._pool.close(drain_s=drain_s)

    def _answer(self, request: LiveRequest, n_prompt: int, answer: PooledAnswer) -> None:
        words = [] if answer.unwanted.is_set() else re.findall(r"\s*\S+|\s+$", self._script(request))
        composer = Composer(request.stop, drift=request.drift)
        for number, word in enumerate(words[: request.sampling.max_new_tokens]):
            if self._delay_s:
                answer.unwanted.wait(self._delay_s)
            if answer.unwanted.is_set():
                break
            if number and request.drift and self._drift is not None:
                composer.measured(self._drift(number - 1))
            composer.add(LiveToken(id=-1, text=word), word)
            if composer.stopped:
                break
            if piece := composer.take():
                answer.put(piece)
        cut = len(words) > request.sampling.max_new_tokens and not composer.stopped and not answer.cancelled
        if not cut and not composer.stopped and request.drift and self._drift is not None and composer.n_tokens:
            composer.measured(self._drift(composer.n_tokens - 1))  # the end of the turn came after it
        if piece := composer.finish():
            answer.put(piece)
        answer.finish(
            Completion(
                text=composer.text,
                finish_reason="length" if cut else "stop",
                usage=Usage(prompt_tokens=n_prompt, completion_tokens=composer.n_tokens),
                cap_rate=self.default_alpha if request.alpha is None else request.alpha,
                drift=composer.drift,
            )
        )


def _in_turn(answers: list[str]) -> LiveScript:
    if not answers:
        raise ValueError("a script needs at least one answer")
    turns = itertools.cycle(answers)
    return lambda _: next(turns)


def _n_words(request: LiveRequest) -> int:
    if isinstance(request.prompt, str):
        return len(request.prompt.split())
    return sum(len(message.content.split()) for message in request.prompt)

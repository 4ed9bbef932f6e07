"""What the endpoints share: the engine, the settings, what is counted, and whether the server is ready."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from starlette.requests import Request

from karma_electric.core.messages import user
from karma_electric.models.engines.live import EngineError, LiveEngine, LiveRequest
from karma_electric.models.engines.protocol import Completion, Sampling
from karma_electric.serve.admission import Admission
from karma_electric.serve.errors import HttpError
from karma_electric.serve.exchange import Exchange
from karma_electric.serve.metrics import Metrics
from karma_electric.serve.records import Record, record_of
from karma_electric.serve.settings import ServeSettings

_SEEDS = 2**63


@dataclass(frozen=True)
class Asked:
    """What a request asks of its answers, whichever API it came by. None: not said."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    alpha: float | None = None
    drift: bool = False
    logprobs: int | None = None


class Service:
    """One engine and everything around it that endpoints need.

    Attributes:
        failure: why the model cannot be used, once that is known.
        warm: whether it has answered once.
    """

    def __init__(self, engine: LiveEngine, settings: ServeSettings) -> None:
        self.engine = engine
        self.settings = settings
        self.admission = Admission(settings.limits.answers, lambda: engine.load().active)
        self.metrics = Metrics(engine.load, lambda: self.unready is None)
        self.pool = ThreadPoolExecutor(settings.limits.answers, thread_name_prefix="answer")
        self.warm = False
        self.failure: str | None = None

    @property
    def unready(self) -> str | None:
        """Why no requests should be sent here; None if they should."""
        if self.failure is not None:
            return self.failure
        if self.admission.draining:
            return "about to stop"
        return None if self.warm else "warming up"

    def warm_up(self) -> None:
        """Answer once, so that the first client does not pay for what is made on first use. Blocks."""
        request = LiveRequest([user("Hello")], Sampling(max_new_tokens=2), drift=self.engine.can_drift)
        try:
            for _ in self.engine.submit(request):
                pass
        except Exception as error:
            self.failure = f"the warm-up failed ({type(error).__name__})"
            raise
        self.warm = True

    def check_model(self, name: str) -> None:
        """Refuse requests for another model.

        Raises:
            HttpError: 404.
        """
        known = self.settings.served.id
        if name not in (known, f"{known}:latest"):
            raise HttpError(
                404, f"The model {name[:80]!r} is not served here.", f"This server has {known!r}.", param="model",
                code="model_not_found",
            )  # fmt: skip

    def requests(self, prompts: Sequence[object], asked: Asked, *, n: int) -> list[LiveRequest]:
        """`n` requests for each prompt; the i-th of all samples with seed + i.

        Raises:
            HttpError: more answers, or longer ones, than there may be.
        """
        limits = self.settings.limits
        if len(prompts) * n > limits.n:
            raise HttpError(
                400, f"{len(prompts) * n} answers were asked for, more than the {limits.n} there may be.",
                "Ask in several requests (karma serve --max-n changes the limit).", param="n",
            )  # fmt: skip
        if asked.max_tokens is not None and asked.max_tokens > limits.max_tokens:
            raise HttpError(
                400, f"max_tokens is {asked.max_tokens}, more than the {limits.max_tokens} there may be.",
                "Ask for fewer (karma serve --max-tokens changes the limit).", param="max_tokens",
            )  # fmt: skip
        seed = secrets.randbelow(_SEEDS) if asked.seed is None else asked.seed
        temperature = self.settings.temperature if asked.temperature is None else asked.temperature
        top_p = self.settings.top_p if asked.top_p is None else asked.top_p
        most = min(limits.max_tokens, self.engine.context - 1) if asked.max_tokens is None else asked.max_tokens
        return [
            LiveRequest(
                prompt=prompt,  # type: ignore[arg-type]
                sampling=Sampling(temperature, top_p, most, (seed + number) % _SEEDS),
                alpha=asked.alpha,
                drift=asked.drift,
                stop=asked.stop,
                logprobs=asked.logprobs,
            )
            for number, prompt in enumerate(prompt for prompt in prompts for _ in range(n))
        ]

    def begin(self, request: Request, wanted: Sequence[LiveRequest], *, stream: bool, fit: bool) -> Exchange:
        """Let the requests in and hand them to the engine.

        Raises:
            HttpError: too many are under way.
        """
        record = record_of(request.scope)
        first = wanted[0]
        record.note(stream=stream, n=len(wanted), alpha=self.alpha_of(first), drift=first.drift)
        if self.failure is not None:
            raise HttpError(503, f"The model cannot be used: {self.failure}.", "See the server's log.")
        self.admission.take(len(wanted))
        return Exchange(self.engine, wanted, self.pool, self.admission, fit=fit)

    def ended(self, request: Request, exchange: Exchange, completions: Sequence[Completion]) -> None:
        """Count answers that came to their end."""
        record: Record = record_of(request.scope)
        prompt = sum(completion.usage.prompt_tokens for completion in completions)
        answer = sum(completion.usage.completion_tokens for completion in completions)
        record.note(prompt_tokens=prompt, completion_tokens=answer)
        record.note(finish=",".join(dict.fromkeys(completion.finish_reason for completion in completions)))
        self.metrics.tokens.labels("prompt").inc(prompt)
        self.metrics.tokens.labels("completion").inc(answer)
        for completion in completions:
            self.metrics.finished.labels(completion.finish_reason).inc()
            if completion.cap_rate is not None:
                self.metrics.cap_rate.observe(completion.cap_rate)
        if exchange.first_s is not None:
            record.note(first_token_s=round(exchange.first_s, 4))
            self.metrics.first_token.observe(exchange.first_s)

    def failed(self, request: Request, error: Exception) -> None:
        """Note what an answer failed of; an engine that broke makes the server unready."""
        record_of(request.scope).note(error=type(error).__name__)
        self.metrics.finished.labels("error").inc()
        if isinstance(error, EngineError) and error.broken:
            self.failure = f"the engine broke ({error.message})"

    def alpha_of(self, request: LiveRequest) -> float | None:
        """The strength a request is answered at; None without a cap that can be changed."""
        return self.engine.default_alpha if request.alpha is None else request.alpha


def service_of(request: Request) -> Service:
    """The service of the app that a request came to."""
    service: Service = request.app.state.service
    return service

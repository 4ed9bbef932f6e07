"""Asks a model through Inspect: any provider, several requests at once, with patience, and reasons where none answers.

There is one layer of retries, here: Inspect's and the provider library's own are off, so that a Retry-After is heeded,
a rate limit holds all requests back, and every failure is counted and named. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from karma_electric.core.errors import InputError, KarmaError, MissingError
from karma_electric.core.jsonl import whole_characters
from karma_electric.core.messages import Conversation

if TYPE_CHECKING:
    from inspect_ai.model import ChatMessage, Model, ModelOutput, ResponseSchema

T = TypeVar("T")
Kind = Literal["unreachable", "timeout", "rate-limit", "server-error", "garbled", "refused", "error"]
_LASTING: tuple[Kind, ...] = ("refused",)  # asking again would change nothing
_SCHEMA_REFUSALS = (400, 422, 500, 501)  # what servers say to a response schema they do not know
_LONGEST_WAIT_S = 60.0
_PATIENCE_S = 900.0  # with rate limits, per request


@dataclass(frozen=True)
class Endpoint:
    """What is asked, and how patiently.

    Attributes:
        model: an Inspect model name: karma/builtin:smollm2-135m, ollama/llama3.1, openai-api/SERVICE/NAME.
        base_url: where it is, when not where the provider looks by itself.
        model_args: arguments of the provider (for karma: cap, alpha, batch_size).
        temperature, top_p, max_tokens: how answers are sampled; top_p is left to the provider when None.
        max_connections: requests in flight.
        timeout_s: seconds that one request may take.
        retries: how often a request that failed is made again.
    """

    model: str
    base_url: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 0.7
    top_p: float | None = None
    max_tokens: int = 512
    max_connections: int = 4
    timeout_s: int = 300
    retries: int = 2


@dataclass(frozen=True)
class Said:
    """One answer. `finish` is "stop", "length", or the provider's word for another end ("content_filter")."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


class NoAnswer(Exception):
    """A request got no answer, whatever was tried. `kind` groups the reasons, `reason` is for people."""

    def __init__(self, kind: Kind, reason: str, *, status: int | None = None, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.status = status
        self.wait_s = wait_s


def back_off_s(times: int) -> float:
    """Seconds to wait after the `times`-th failure: 1, 2, 4 and so on, a minute at most."""
    return float(min(2.0 ** (times - 1), _LONGEST_WAIT_S))


class Asker:
    """A model that can be asked, as an async context manager; inside one event loop.

    Attributes:
        name: the model's name.
        endpoint: what is asked, and how.
        max_connections: requests in flight.
        requests: how many were made, those that failed included.
        structured: whether the endpoint takes a response schema; None until it was tried.
    """

    def __init__(self, endpoint: Endpoint, *, wait_s: Callable[[int], float] = back_off_s) -> None:
        """Find the model, and load it where it runs in this process.

        Args:
            endpoint: what to ask.
            wait_s: seconds to wait after the n-th failure.

        Raises:
            InputError: no such provider, or arguments that it does not take.
            MissingError: a key, a package or a model that is not there.
        """
        self.name = endpoint.model
        self.max_connections = endpoint.max_connections
        self.requests = 0
        self.endpoint = endpoint
        self._wait_s = wait_s
        self._free_at = 0.0  # time.monotonic() from which on requests may be made
        self._model = _open(endpoint)
        self.structured: bool | None = None if getattr(self._model.api, "supports_response_schema", True) else False
        client = getattr(self._model.api, "client", None)
        if client is not None and hasattr(client, "max_retries"):
            client.max_retries = 0

    async def __aenter__(self) -> Asker:
        await self._model.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._model.__aexit__(kind, error, trace)

    async def ask(
        self, conversation: Conversation, *, seed: int | None = None, schema: ResponseSchema | None = None
    ) -> Said:
        """Ask once, with retries where they may help.

        Args:
            conversation: ends with the user's turn.
            seed: for providers that take one.
            schema: form of the answer; left out where the endpoint refuses it.

        Raises:
            NoAnswer: after all retries.
        """
        failures = limits = 0
        limited_s = 0.0
        while True:
            await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
            structured = schema is not None and self.structured is not False
            try:
                # A task of its own: Inspect keeps a record of every call with the task that made it.
                said = await asyncio.create_task(self._once(conversation, seed, schema if structured else None))
            except NoAnswer as failure:
                if structured and self.structured is None and failure.status in _SCHEMA_REFUSALS:
                    unstructured = await self._without_schema(conversation, seed, failure)
                    if unstructured is not None:
                        return unstructured
                if failure.kind == "rate-limit":
                    limits += 1
                    wait_s = min(failure.wait_s or self._wait_s(limits), _LONGEST_WAIT_S)
                    limited_s += wait_s
                    if limited_s > _PATIENCE_S:
                        raise
                    self._free_at = max(self._free_at, time.monotonic() + wait_s)
                    continue
                failures += 1
                if failure.kind in _LASTING or failures > self.endpoint.retries:
                    raise
                await asyncio.sleep(self._wait_s(failures))
                continue
            if structured:
                self.structured = True
            return said

    async def _without_schema(self, conversation: Conversation, seed: int | None, failure: NoAnswer) -> Said | None:
        """The answer without the response schema, if that was what the endpoint refused."""
        try:
            said = await asyncio.create_task(self._once(conversation, seed, None))
        except NoAnswer as other:
            if other.status == failure.status:
                return None
            raise
        self.structured = False
        return said

    async def _once(self, conversation: Conversation, seed: int | None, schema: ResponseSchema | None) -> Said:
        from inspect_ai.model import GenerateConfig
        from inspect_ai.util import LimitExceededError

        asked = self.endpoint
        self.requests += 1
        config = GenerateConfig(
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_tokens=asked.max_tokens,
            seed=seed,
            response_schema=schema,
            max_connections=asked.max_connections,
            max_retries=0,
            attempt_timeout=asked.timeout_s,
        )
        try:
            output = await self._model.generate(_messages(conversation), config=config)
        except LimitExceededError:
            raise  # Inspect's own limits end its sample
        except Exception as error:
            raise self._no_answer(error) from error
        return _said(output)

    def _no_answer(self, error: Exception) -> NoAnswer:
        """An exception of any provider as a kind and a reason."""
        from openai import APIConnectionError, APITimeoutError

        cause = cause_of(error)
        if isinstance(cause, MemoryError) or not isinstance(cause, Exception):
            raise cause
        if isinstance(cause, KarmaError):
            return NoAnswer("refused", str(cause))
        name, text = type(cause).__name__, first_line(cause)
        if isinstance(cause, APITimeoutError) or "Timeout" in name:
            return NoAnswer("timeout", f"no answer within {self.endpoint.timeout_s} s")
        if isinstance(cause, APIConnectionError):
            return NoAnswer("unreachable", f"{text} ({first_line(cause_of(cause.__cause__ or cause))})")
        status = getattr(cause, "status_code", None)
        decision = self._model.api.should_retry(cause)
        if status == 429 or getattr(decision, "kind", "") == "rate_limit":
            return NoAnswer("rate-limit", text, status=status, wait_s=getattr(decision, "retry_after", None))
        if isinstance(status, int):
            kind: Kind = "server-error" if status >= 500 or status == 408 else "refused"
            return NoAnswer(kind, text, status=status)
        # A web page, half a JSON, or JSON of another shape: what a library makes of it differs.
        _, other_shape, body = text.partition("non-ChatCompletion response: ")
        if other_shape:
            return NoAnswer("garbled", f"the answer is not the chat API's: {body[:80]}")
        if isinstance(cause, ValueError | TypeError | LookupError | AttributeError):
            return NoAnswer("garbled", f"the answer is not the chat API's ({name}: {text})")
        return NoAnswer("error", f"{name}: {text}")


class Asked(Protocol):
    """What `Outage` has to know of a model."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def max_connections(self) -> int:
        """Requests in flight."""
        ...


class Outage:
    """Notices that nothing answers any more, so that thousands of requests are not made in vain.

    Before the first answer, failures in a row that are all of one kind count; refusals too, if they say the same.
    After it, refusals do not count: they may be about what was asked.
    """

    def __init__(self, asker: Asked) -> None:
        self._asker = asker
        self._limit = max(4, asker.max_connections)
        self._in_a_row = 0
        self._last = ("", "")
        self._answered = False

    def answered(self) -> None:
        """A request was answered."""
        self._answered = True
        self._in_a_row = 0

    def failed(self, failure: NoAnswer) -> None:
        """A request was not.

        Raises:
            MissingError: so many in a row that the model is not there.
        """
        refused = failure.kind == "refused"
        if refused and self._answered:
            return
        key = (failure.kind, failure.reason if refused else "")
        self._in_a_row = self._in_a_row + 1 if key == self._last else 1
        self._last = key
        if self._in_a_row >= self._limit * (4 if self._answered else 1):
            raise not_there(self._asker.name, failure.kind, failure.reason, f"{self._in_a_row} requests in a row")


def not_there(model: str, kind: str, reason: str, which: str) -> MissingError:
    """The error for a model that gives no answers."""
    hints = {
        "unreachable": "Is the server running? Give its address with --base-url.",
        "timeout": "Give it more time with --timeout, or fewer requests at once with --max-connections.",
        "rate-limit": "Wait, or make fewer requests at once with --max-connections.",
        "garbled": "Is --base-url the address of the API (it often ends in /v1)?",
        "refused": "Check the model's name and its key.",
    }
    hint = f"{hints.get(kind, '')} Then run the same command again: it continues."
    return MissingError(f"{model} does not answer: {which} failed ({reason}).", hint.strip())


async def in_parallel(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, connections: int) -> None:
    """Do `work` for every item, so many at a time; items are taken only when there is room.

    Raises:
        Exception: the first that `work` raises; what is in flight is cancelled.
    """
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:  # shared by all workers; nothing is awaited while one is taken
            await work(item)

    tasks = [asyncio.create_task(worker()) for _ in range(connections)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def parse_model_args(pairs: Iterable[str]) -> dict[str, Any]:
    """`alpha=0.5` as a provider's argument: the value is JSON where it can be read as JSON, else text.

    Raises:
        InputError: no `=`.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--model-arg {pair!r} has no '='.", "For example: --model-arg alpha=0.5")
        try:
            arguments[name] = json.loads(value)
        except json.JSONDecodeError:
            arguments[name] = value
    return arguments


def _open(endpoint: Endpoint) -> Model:
    from karma_electric.core.extras import require

    require("data")
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import get_model
    from rich.text import Text

    provider, _, rest = endpoint.model.partition("/")
    if not rest:
        raise InputError(
            f"{endpoint.model!r} is no Inspect model name.",
            "Give PROVIDER/NAME: karma/builtin:smollm2-135m, ollama/llama3.1, vllm/..., openai-api/SERVICE/NAME.",
        )
    if provider == "karma":
        from karma_electric.models import inspect_provider  # noqa: F401  registers the name
    keys: list[str | None] = [None] if endpoint.base_url is None else [None, "none"]  # servers at home want no key
    for key in keys:
        try:
            return get_model(
                endpoint.model, base_url=endpoint.base_url, api_key=key, memoize=False, **endpoint.model_args
            )
        except PrerequisiteError as error:
            if key == keys[-1]:
                said = " ".join(Text.from_markup(str(error.message)).plain.split())
                raise MissingError(
                    f"{endpoint.model} cannot be used: {said.removeprefix('ERROR: ')}",
                    "Set what it names, or give --base-url for a server that needs no key.",
                ) from None
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{endpoint.model} cannot be used: {first_line(error)}",
                "See https://inspect.aisi.org.uk/providers.html for names and arguments.",
            ) from None
    raise AssertionError("unreachable")


def _messages(conversation: Conversation) -> list[ChatMessage]:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return [kinds[message.role](content=message.content) for message in conversation]


def _said(output: ModelOutput) -> Said:
    if not output.choices:
        raise NoAnswer("garbled", "the answer is not the chat API's (no choices)")
    usage, finish = output.usage, output.choices[0].stop_reason
    if finish == "model_length" and usage is None:
        raise NoAnswer("refused", output.completion[:200] or "longer than the model's context")
    read = (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0) if usage else 0
    return Said(
        text=whole_characters(output.completion),
        finish="length" if finish in ("max_tokens", "model_length") else finish,
        prompt_tokens=usage.input_tokens + read if usage else 0,
        completion_tokens=usage.output_tokens if usage else 0,
    )


def cause_of(error: BaseException) -> BaseException:
    """The exception that Inspect, or its retry library, has wrapped."""
    from tenacity import RetryError

    if isinstance(error, RetryError):
        return error.last_attempt.exception() or error
    if type(error).__name__ == "ModelGenerateError" and error.__cause__ is not None:
        return error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """What an exception says, or else its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__

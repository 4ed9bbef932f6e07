"""OpenAI's endpoints: chat, completions, models."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from karma_electric.core.messages import Conversation
from karma_electric.models.engines.live import LiveRequest, LiveToken
from karma_electric.models.engines.protocol import Completion
from karma_electric.serve.bodies import checked, read_object
from karma_electric.serve.conversations import read_messages
from karma_electric.serve.errors import HttpError, as_http, error_body
from karma_electric.serve.exchange import Exchange, unless_gone
from karma_electric.serve.openai_bodies import CHAT, TEXT, ChatBody, TextBody
from karma_electric.serve.openai_render import DONE, chat_logprobs, event, text_logprobs, usage
from karma_electric.serve.openapi import body_of
from karma_electric.serve.responses import Streamed
from karma_electric.serve.service import Asked, Service, service_of
from karma_electric.serve.steering import summary, tells, token_dict

STREAMS = "text/event-stream"
router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", summary="Answer a conversation", openapi_extra=body_of(ChatBody, streams=STREAMS))
async def chat(request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    service = service_of(request)
    data, ignored = CHAT.sift(await read_object(request, service.settings.limits))
    body = checked(ChatBody, data)
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise HttpError(400, "top_logprobs was given without logprobs.", "Set logprobs to true.", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise HttpError(
            400, f"max_tokens is {body.max_tokens} and max_completion_tokens {body.max_completion_tokens}.",
            "Give one of them.", param="max_tokens",
        )  # fmt: skip
    messages = [message.model_dump() for message in body.messages]
    conversation = read_messages(
        messages, service.settings.served.default_system, most=service.settings.limits.messages
    )
    asked = _asked(body, (body.top_logprobs or 0) if body.logprobs else None)
    if body.max_completion_tokens is not None:
        asked = _asked(body, asked.logprobs, max_tokens=body.max_completion_tokens)
    return await _Reply(request, service, body, ignored, _CHAT).give([conversation], asked)


@router.post("/v1/completions", summary="Continue a text", openapi_extra=body_of(TextBody, streams=STREAMS))
async def completions(request: Request) -> Response:
    """Continue a text as it is, whole or as server-sent events. Special tokens in it are read as such."""
    service = service_of(request)
    data, ignored = TEXT.sift(await read_object(request, service.settings.limits))
    body = checked(TextBody, data)
    service.check_model(body.model)
    if body.best_of not in (None, body.n or 1):
        raise HttpError(400, f"best_of is {body.best_of} and n {body.n or 1}.", "Leave best_of out.", param="best_of")
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    return await _Reply(request, service, body, ignored, _TEXT).give(prompts, _asked(body, body.logprobs))


@router.get("/v1/models", summary="The model that is served")
async def models(request: Request) -> dict[str, Any]:
    """List the one model."""
    return {"object": "list", "data": [_model(service_of(request))]}


@router.get("/v1/models/{name}", summary="The model, if it has this name")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describe the one model."""
    service = service_of(request)
    service.check_model(name)
    return _model(service)


def _model(service: Service) -> dict[str, Any]:
    served = service.settings.served
    return {"id": served.id, "object": "model", "created": served.created, "owned_by": "karma-electric"}


def _asked(body: ChatBody | TextBody, logprobs: int | None, max_tokens: int | None = None) -> Asked:
    return Asked(
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=body.max_tokens if max_tokens is None else max_tokens,
        seed=body.seed,
        stop=body.stops(),
        alpha=body.alpha,
        drift=bool(body.drift),
        logprobs=logprobs,
    )


@dataclass(frozen=True)
class _Form:
    """What differs between the two endpoints' answers."""

    id: str
    whole: str  # value of `object`
    chunk: str
    choice: Callable[[str, list[LiveToken] | None], dict[str, Any]]
    opening: dict[str, Any] | None  # sent before the first piece of an answer
    piece: Callable[[str, list[LiveToken] | None, int], dict[str, Any]]


_CHAT = _Form(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text, tokens: {
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if tokens is None else chat_logprobs(tokens),
    },
    {"delta": {"role": "assistant", "content": ""}, "logprobs": None},
    lambda text, tokens, _: {
        "delta": {"content": text} if text else {},
        "logprobs": None if tokens is None else chat_logprobs(tokens),
    },
)
_TEXT = _Form(
    "cmpl",
    "text_completion",
    "text_completion",
    lambda text, tokens: {"text": text, "logprobs": None if tokens is None else text_logprobs(tokens, offset=0)},
    None,
    lambda text, tokens, offset: {
        "text": text,
        "logprobs": None if tokens is None else text_logprobs(tokens, offset=offset),
    },
)


class _Reply:
    """One reply, of either endpoint."""

    def __init__(
        self, request: Request, service: Service, body: ChatBody | TextBody, ignored: list[str], form: _Form
    ) -> None:
        self._request = request
        self._service = service
        self._n = body.n or 1
        self._stream = bool(body.stream)
        self._wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        if body.stream_options is not None and not self._stream:
            raise HttpError(400, "stream_options was given without stream.", "Set stream to true.",
                            param="stream_options")  # fmt: skip
        self._headers = {"X-Karma-Ignored": ", ".join(sorted(ignored))} if ignored else {}
        self._form = form
        self._head = {
            "id": f"{form.id}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.settings.served.id,
            "system_fingerprint": service.settings.served.fingerprint or None,
        }

    async def give(self, prompts: list[Conversation] | list[str], asked: Asked) -> Response:
        """Ask the engine and answer."""
        wanted = self._service.requests(prompts, asked, n=self._n)
        fit = asked.max_tokens is None
        exchange = self._service.begin(self._request, wanted, stream=self._stream, fit=fit)
        try:
            if self._stream:
                await unless_gone(self._request.receive, exchange.first())
            else:
                return await self._whole(exchange, wanted, len(prompts))
        except BaseException:
            exchange.cancel()
            raise
        return Streamed(
            exchange,
            self._chunks(exchange, wanted, len(prompts)),
            media_type=STREAMS,
            send_s=self._service.settings.limits.send_s,
            headers=self._headers,
        )

    async def _whole(self, exchange: Exchange, wanted: list[LiveRequest], prompts: int) -> Response:
        outcomes = await unless_gone(self._request.receive, exchange.collect())
        done = [outcome.completion for outcome in outcomes]
        self._service.ended(self._request, exchange, done)
        choices, told = [], []
        for index, (asked, outcome) in enumerate(zip(wanted, outcomes, strict=True)):
            tokens = None if asked.logprobs is None else outcome.tokens
            choice = self._form.choice(outcome.completion.text, tokens)
            choices.append({"index": index, **choice, "finish_reason": outcome.completion.finish_reason})
            told.append(summary(self._service, asked, outcome.completion, outcome.tokens))
        reply: dict[str, Any] = {"object": self._form.whole, **self._head, "choices": choices}
        reply["usage"] = usage(done, prompts)
        if tells(self._service):
            reply["karma"] = told[0]
            if len(choices) > 1:
                reply["choices"] = [choice | {"karma": each} for choice, each in zip(choices, told, strict=True)]
        return JSONResponse(reply, headers=self._headers)

    async def _chunks(self, exchange: Exchange, wanted: list[LiveRequest], prompts: int) -> AsyncIterator[bytes]:
        done: dict[int, Completion] = {}
        lengths = [0] * len(wanted)  # characters of the tokens told so far
        try:
            if self._form.opening is not None:
                for index in range(len(wanted)):
                    yield self._chunk({"index": index, **self._form.opening, "finish_reason": None})
            async for news in exchange:
                asked = wanted[news.index]
                if news.piece is not None:
                    tokens = list(news.piece.tokens)
                    told = tokens if asked.logprobs is not None else None
                    choice = self._form.piece(news.piece.text, told, lengths[news.index])
                    lengths[news.index] += sum(len(token.text) for token in tokens)
                    karma = {"tokens": [token_dict(token) for token in tokens]} if asked.drift else None
                    if news.piece.text or told or (karma and tokens):
                        yield self._chunk({"index": news.index, **choice, "finish_reason": None}, karma)
                if news.completion is not None:
                    done[news.index] = news.completion
                    choice = self._form.piece("", None, 0)
                    reason = news.completion.finish_reason
                    karma = summary(self._service, asked, news.completion, None) if tells(self._service) else None
                    yield self._chunk({"index": news.index, **choice, "finish_reason": reason}, karma)
            completions = [done[index] for index in sorted(done)]
            self._service.ended(self._request, exchange, completions)
            if self._wants_usage:
                head = {"object": self._form.chunk, **self._head}
                yield event({**head, "choices": [], "usage": usage(completions, prompts)})
            yield DONE
        except Exception as error:  # the status is sent already: the client's library reads this
            self._service.failed(self._request, error)
            yield event(error_body(as_http(error), self._request.url.path))

    def _chunk(self, choice: dict[str, Any], karma: dict[str, Any] | None = None) -> bytes:
        chunk: dict[str, Any] = {"object": self._form.chunk, **self._head, "choices": [choice]}
        if self._wants_usage:
            chunk["usage"] = None
        if karma is not None:
            chunk["karma"] = karma
        return event(chunk)

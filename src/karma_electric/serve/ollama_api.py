"""Ollama's endpoints: chat, generate, and what is there."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

import karma_electric
from karma_electric.core.messages import Conversation, user
from karma_electric.models.engines.live import LiveRequest, LiveToken
from karma_electric.models.engines.protocol import Completion
from karma_electric.serve.bodies import checked, read_object
from karma_electric.serve.conversations import read_messages
from karma_electric.serve.errors import HttpError, as_http, error_body
from karma_electric.serve.exchange import Exchange, unless_gone
from karma_electric.serve.ollama_bodies import (
    FILL_CONTEXT,
    OPTIONS,
    REQUEST,
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaShowBody,
    Options,
)
from karma_electric.serve.ollama_model import details, digest, model_info, modelfile, parameters
from karma_electric.serve.openapi import body_of
from karma_electric.serve.responses import Streamed
from karma_electric.serve.service import Asked, Service, service_of
from karma_electric.serve.steering import summary, tells, token_dict

STREAMS = "application/x-ndjson"
router = APIRouter(tags=["ollama"])
Body = TypeVar("Body", bound=OllamaChatBody | OllamaGenerateBody)


@router.post("/api/chat", summary="Answer a conversation", openapi_extra=body_of(OllamaChatBody, streams=STREAMS))
async def chat(request: Request) -> Response:
    """Answer a conversation, as lines of JSON or whole."""
    service, body, asked, reply = await _read(request, OllamaChatBody)
    if not body.messages:
        return reply.loaded()
    messages = [message.model_dump() for message in body.messages]
    default_system = service.settings.served.default_system
    conversation = read_messages(messages, default_system, most=service.settings.limits.messages)
    return await reply.give(conversation, asked)


@router.post("/api/generate", summary="Answer a prompt", openapi_extra=body_of(OllamaGenerateBody, streams=STREAMS))
async def generate(request: Request) -> Response:
    """Answer a prompt, or with `raw` continue it; as lines of JSON or whole."""
    service, body, asked, reply = await _read(request, OllamaGenerateBody)
    if not body.prompt:
        return reply.loaded()
    if body.raw:
        if body.system:
            raise HttpError(400, "system was given with raw.", "With raw the prompt is all there is.", param="system")
        return await reply.give(body.prompt, asked)
    items = [{"role": "system", "content": body.system}] if body.system else []
    items.append(user(body.prompt).as_dict())
    default_system = service.settings.served.default_system
    return await reply.give(read_messages(items, default_system, most=len(items)), asked)


@router.get("/api/tags", summary="The model that is served")
async def tags(request: Request) -> dict[str, Any]:
    """List the one model."""
    return {"models": [_listed(service_of(request))]}


@router.get("/api/ps", summary="The model that is loaded")
async def running(request: Request) -> dict[str, Any]:
    """List the one model: it stays loaded."""
    service = service_of(request)
    never = "9999-12-31T23:59:59Z"
    more = {"expires_at": never, "size_vram": 0, "context_length": service.engine.context}
    return {"models": [_listed(service) | more]}


@router.post("/api/show", summary="All about the model", openapi_extra=body_of(OllamaShowBody))
async def show(request: Request) -> dict[str, Any]:
    """Describe the one model: template, persona, cap."""
    service = service_of(request)
    body = checked(OllamaShowBody, await read_object(request, service.settings.limits, any_type=True))
    name = body.model or body.name
    if not name:
        raise HttpError(400, "model is missing.", "It is required.", param="model")
    service.check_model(name)
    settings = service.settings
    shown = {
        "modelfile": modelfile(settings),
        "parameters": parameters(settings),
        "template": settings.served.template,
        "details": details(settings.served),
        "model_info": model_info(settings.served, service.engine.context),
        "capabilities": ["completion"],
        "modified_at": _time(settings.served.created),
    }
    if settings.served.default_system is not None:
        shown["system"] = settings.served.default_system
    return shown


@router.get("/api/version", summary="The version of this server")
async def version() -> dict[str, str]:
    """Tell the version: ours, not Ollama's."""
    return {"version": karma_electric.__version__}


def _listed(service: Service) -> dict[str, Any]:
    served = service.settings.served
    name = f"{served.id}:latest"
    return {
        "name": name,
        "model": name,
        "modified_at": _time(served.created),
        "size": served.size_bytes,
        "digest": digest(served),
        "details": details(served),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


async def _read(request: Request, form: type[Body]) -> tuple[Service, Body, Asked, _Reply]:
    """A question as its body says it, and what will answer it."""
    service = service_of(request)
    data, ignored = REQUEST.sift(await read_object(request, service.settings.limits, any_type=True))
    body = checked(form, data)
    service.check_model(body.model)
    asked, more_ignored = _asked(body)
    return service, body, asked, _Reply(request, service, body, [*ignored, *more_ignored])


def _asked(body: OllamaChatBody | OllamaGenerateBody) -> tuple[Asked, list[str]]:
    data, ignored = OPTIONS.sift(body.options or {}, "options.")
    options = checked(Options, data, "options.")
    for name in ("alpha", "drift"):
        outer, inner = getattr(body, name), getattr(options, name)
        if outer is not None and inner is not None and outer != inner:
            raise HttpError(400, f"{name} is {outer} and options.{name} {inner}.", "Give one of them.", param=name)
    if body.top_logprobs is not None and not body.logprobs:
        raise HttpError(400, "top_logprobs was given without logprobs.", "Set logprobs to true.", param="top_logprobs")
    if options.num_predict == 0:
        raise HttpError(400, "options.num_predict is 0.", "Give 1 or more, or -1 for as many as fit.",
                        param="options.num_predict")  # fmt: skip
    stop = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ())
    asked = Asked(
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=None if options.num_predict in FILL_CONTEXT else options.num_predict,
        seed=options.seed,
        stop=tuple(text for text in stop if text),
        alpha=body.alpha if options.alpha is None else options.alpha,
        drift=bool(body.drift if options.drift is None else options.drift),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return asked, ignored


class _Reply:
    """One reply, of either endpoint."""

    def __init__(
        self,
        request: Request,
        service: Service,
        body: OllamaChatBody | OllamaGenerateBody,
        ignored: list[str],
    ) -> None:
        self._request = request
        self._service = service
        self._model = body.model
        self._stream = body.stream is not False
        self._headers = {"X-Karma-Ignored": ", ".join(sorted(ignored))} if ignored else {}
        self._chat = isinstance(body, OllamaChatBody)
        self._started = time.monotonic()

    def loaded(self) -> Response:
        """Nothing was asked: the model is there."""
        done = {"done": True, "done_reason": "load"}
        return JSONResponse(self._line("", None) | done, headers=self._headers)

    async def give(self, prompt: Conversation | str, asked: Asked) -> Response:
        """Ask the engine and answer."""
        (wanted,) = self._service.requests([prompt], asked, n=1)
        fit = asked.max_tokens is None
        exchange = self._service.begin(self._request, [wanted], stream=self._stream, fit=fit)
        try:
            if not self._stream:
                (outcome,) = await unless_gone(self._request.receive, exchange.collect())
                self._service.ended(self._request, exchange, [outcome.completion])
                last = self._last(exchange, wanted, outcome.completion, outcome.tokens)
                text = outcome.completion.text
                return JSONResponse(self._line(text, self._logprobs(wanted, outcome.tokens)) | last,
                                    headers=self._headers)  # fmt: skip
            await unless_gone(self._request.receive, exchange.first())
        except BaseException:
            exchange.cancel()
            raise
        return Streamed(
            exchange,
            self._lines(exchange, wanted),
            media_type=STREAMS,
            send_s=self._service.settings.limits.send_s,
            headers=self._headers,
        )

    async def _lines(self, exchange: Exchange, wanted: LiveRequest) -> AsyncIterator[bytes]:
        try:
            async for news in exchange:
                if news.piece is not None:
                    tokens = list(news.piece.tokens)
                    logprobs = self._logprobs(wanted, tokens)
                    line = self._line(news.piece.text, logprobs) | {"done": False}
                    if wanted.drift:
                        line["karma"] = {"tokens": [token_dict(token) for token in tokens]}
                    if news.piece.text or logprobs or (wanted.drift and tokens):
                        yield _json_line(line)
                if news.completion is not None:
                    self._service.ended(self._request, exchange, [news.completion])
                    yield _json_line(self._line("", None) | self._last(exchange, wanted, news.completion, None))
        except Exception as error:  # the status is sent already: the client's library reads this
            self._service.failed(self._request, error)
            yield _json_line(error_body(as_http(error), self._request.url.path))

    def _line(self, text: str, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._model, "created_at": _time(time.time())}
        if self._chat:
            line["message"] = {"role": "assistant", "content": text}
        else:
            line["response"] = text
        return line if not logprobs else line | {"logprobs": logprobs}

    def _last(
        self, exchange: Exchange, wanted: LiveRequest, completion: Completion, tokens: list[LiveToken] | None
    ) -> dict[str, Any]:
        first_s, all_s = exchange.first_s or 0.0, time.monotonic() - self._started
        last: dict[str, Any] = {
            "done": True,
            "done_reason": completion.finish_reason,
            "total_duration": _nanoseconds(all_s),
            "load_duration": 0,
            "prompt_eval_count": completion.usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first_s),
            "eval_count": completion.usage.completion_tokens,
            "eval_duration": _nanoseconds(max(0.0, all_s - first_s)),
        }
        if tells(self._service):
            last["karma"] = summary(self._service, wanted, completion, tokens)
        return last

    def _logprobs(self, wanted: LiveRequest, tokens: list[LiveToken]) -> list[dict[str, Any]] | None:
        if wanted.logprobs is None:
            return None
        found = []
        for token in tokens:
            one: dict[str, Any] = {"token": token.text, "logprob": token.logprob}
            if wanted.logprobs:
                one["top_logprobs"] = [{"token": text, "logprob": p} for text, p in token.top]
            found.append(one)
        return found


def _json_line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)

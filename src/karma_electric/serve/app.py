"""Puts the parts together: `create_app(engine, settings)` is the whole server but for the socket."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import karma_electric
from karma_electric.core.errors import KarmaError
from karma_electric.models.engines.live import EngineError, LiveEngine
from karma_electric.serve import health, ollama_api, openai_api, steering
from karma_electric.serve.envelope import Envelope
from karma_electric.serve.errors import HttpError, as_http, error_response
from karma_electric.serve.guard import Guard, allowed_origins
from karma_electric.serve.openapi import describe
from karma_electric.serve.page_files import PageFiles
from karma_electric.serve.runs import runs_router
from karma_electric.serve.service import Service, service_of
from karma_electric.serve.settings import ServeSettings


def create_app(engine: LiveEngine, settings: ServeSettings) -> FastAPI:
    """Make the server's app. `app.state.service` is what its endpoints share.

    The engine is warmed up in the background when the app starts; whoever made it closes it.
    """
    service = Service(engine, settings)
    app = FastAPI(
        title="karma-electric",
        version=karma_electric.__version__,
        description="OpenAI's and Ollama's endpoints for one model, with the strength of its cap and its drift.",
        lifespan=_lifespan,
        docs_url=None,  # it would load its page from elsewhere
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    for part in (openai_api, ollama_api, steering, health):
        app.include_router(part.router)
    if settings.runs is not None:
        app.include_router(runs_router(settings.runs))
    app.router.default = PageFiles()  # after all routes: mounted at /, it would take what they answer with 405
    app.add_exception_handler(HttpError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse)
    app.add_exception_handler(KarmaError, _refuse)
    # the last one added is the outermost
    app.add_middleware(Guard, settings=settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins(settings.origins)),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-Id", "X-Karma-Ignored", "Retry-After"],
        )
    app.add_middleware(Envelope, metrics=service.metrics, access_log=settings.access_log)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service

    async def warm_up() -> None:
        try:
            await asyncio.to_thread(service.warm_up)
        except Exception as error:
            print(f"error: The warm-up failed ({type(error).__name__}: {error}).", file=sys.stderr, flush=True)

    warming = asyncio.create_task(warm_up())
    yield
    service.admission.draining = True
    await warming


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong in the form that the endpoint's clients read."""
    service = service_of(request)
    path = request.url.path
    if isinstance(error, RequestValidationError):
        refusal = HttpError(400, f"The address is not right: {error.errors()[0]['msg']}.", "See /openapi.json.")
    elif isinstance(error, HTTPException):
        refusal = _of_framework(error)
    else:
        if isinstance(error, EngineError):
            service.failed(request, error)
        refusal = as_http(error, retry_after_s=service.admission.retry_after_s())
    return error_response(refusal, path)


def _of_framework(error: HTTPException) -> HttpError:
    if error.status_code == 404:
        return HttpError(404, "There is nothing at this address.", "See /openapi.json for what there is.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return HttpError(405, "This address takes another method.", f"It takes {allowed}.", headers=error.headers)
    return HttpError(error.status_code, str(error.detail), headers=error.headers)

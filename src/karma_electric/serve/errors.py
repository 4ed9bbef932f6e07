"""Refusals over HTTP, in the form that the client of the endpoint expects: OpenAI's, or Ollama's below /api."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from karma_electric.core.errors import InputError, KarmaError
from karma_electric.core.printable import printable
from karma_electric.models.engines.live import ClosedError, EngineError, FullError, TooLongError

_KINDS = {
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "timeout"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    421: ("invalid_request_error", "misdirected_request"),
    429: ("rate_limit_error", "overloaded"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "unavailable"),
}


class HttpError(Exception):
    """A refusal: what was found and expected, and what to do next.

    Attributes:
        status: of HTTP.
        text: message and hint.
        param: the parameter it is about, if any.
        code: for programs.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str = "",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        text = printable(f"{message} {hint}".strip())
        super().__init__(text)
        self.status = status
        self.text = text
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


class ClientGone(Exception):
    """Whoever asked is not there any more."""


def as_http(error: BaseException, *, retry_after_s: int = 1) -> HttpError:
    """What to answer to what was raised while a request was worked on."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, FullError):
        return HttpError(429, error.message, error.hint, headers={"Retry-After": str(retry_after_s)})
    if isinstance(error, ClosedError):
        return HttpError(503, error.message, error.hint, headers={"Retry-After": str(retry_after_s)})
    if isinstance(error, EngineError):
        return HttpError(503 if error.broken else 500, error.message, error.hint)
    if isinstance(error, TooLongError):
        return HttpError(400, error.message, error.hint, code="context_length_exceeded")
    if isinstance(error, InputError):
        return HttpError(400, error.message, error.hint)
    if isinstance(error, KarmaError):
        return HttpError(500, error.message, error.hint)
    return HttpError(500, "The server failed at this request.", "Its log has the kind of error; please report it.")


def error_body(error: HttpError, path: str) -> dict[str, Any]:
    """The body of an error answer, in the form that goes with the path."""
    if path.startswith("/api/"):
        return {"error": error.text}
    kind, code = _KINDS.get(error.status, ("invalid_request_error", None))
    return {"error": {"message": error.text, "type": kind, "param": error.param, "code": error.code or code}}


def error_response(error: HttpError, path: str) -> JSONResponse:
    """The whole error answer."""
    return JSONResponse(error_body(error, path), status_code=error.status, headers=error.headers)
